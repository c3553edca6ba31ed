"""Campaigns that kill, cut and refuse at random, against a model of what must be there: `make torture`.

Each prints its seed first and its figures at the end, and exits with 1 on any loss or leak. A short form of each is
part of `make test`.
"""
