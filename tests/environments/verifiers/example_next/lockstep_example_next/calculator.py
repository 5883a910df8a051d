"""A tool server, run by verifiers in a process of its own for each rollout; its state is the rollout's."""

import verifiers.v1 as vf
from pydantic import Field


class Books(vf.State):
    booked: list[float] = Field(default_factory=list)


class CalculatorToolset(vf.Toolset[vf.ToolsetConfig, Books]):
    TOOL_PREFIX = None

    @vf.tool
    def divide(self, a: float, b: float = 2) -> str:
        """Divide one number by another."""
        return f"{a / b:g}"

    @vf.tool
    def book(self, amount: float) -> str:
        """Write an amount into the books."""
        self.state.booked.append(amount)
        return f"{len(self.state.booked)} booked, {sum(self.state.booked):g} in all"


if __name__ == "__main__":
    CalculatorToolset.run()
