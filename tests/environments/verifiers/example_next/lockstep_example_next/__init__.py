"""A taskset of verifiers 0.4. Nothing here knows of Lockstep."""

from lockstep_example_next.taskset import ArithmeticTaskset

__all__ = ["ArithmeticTaskset"]
