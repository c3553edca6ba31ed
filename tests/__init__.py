"""Tests of three floors, unit, node and cluster, and the sandbox that the demo and the cluster floor share."""
