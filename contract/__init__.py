"""What the programs must agree on: names, the callout protocol, class parameters, the shape of our API objects.

Standard library only, and pure: nothing here reads a file, opens a socket or asks a clock.
"""
