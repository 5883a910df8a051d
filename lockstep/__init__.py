"""Lockstep: reinforcement learning of language-model agents, with the trainer and the inference engine in lockstep.

Importing this package imports nothing heavy. Recipes import what they need from its modules, e.g.
`lockstep.config.Run`.
"""

__version__ = "0.1.0"
