"""Running model-written Python safely: standard library only, and nothing of the rest of Lockstep."""
