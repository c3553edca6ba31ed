"""What each of our long-running programs needs, whatever it does: settings from the environment, a log that can be
followed, endpoints for people and machines, and an orderly end."""
