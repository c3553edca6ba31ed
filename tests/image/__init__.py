"""The image as it is shipped: built from deploy/Dockerfile, and every program in it run."""
