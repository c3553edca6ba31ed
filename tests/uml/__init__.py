"""Tests on a kernel with device-mapper, also where there is none: in User-mode Linux."""
