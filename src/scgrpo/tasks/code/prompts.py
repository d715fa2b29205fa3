"""What a chat model is asked."""

from __future__ import annotations

from scgrpo.tasks.base import Message

# The system message and formats of LiveCodeBench's generic chat prompt (github.com/LiveCodeBench/LiveCodeBench, MIT;
# lcb_runner/prompts/code_generation.py): scores depend on the wording, so its own is kept.
LCB_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_LCB_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_LCB_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)

STDIN_INSTRUCTION = (
    "Write a Python program that reads the input from standard input and writes the answer to standard output. "
    "Put the whole program into one ```python code block at the end of your answer."
)
FILES_INSTRUCTION = (
    "Write a Python program that reads the input from the file input.txt and writes the answer to the file "
    "output.txt. Put the whole program into one ```python code block at the end of your answer."
)
FUNCTION_INSTRUCTION = "Put the whole code into one ```python code block at the end of your answer."


def chat(text: str, system: str | None = None) -> list[Message]:
    """A user message, after a system message if there is one."""
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def fenced(code: str) -> str:
    """Code as a model would answer with it."""
    return f"```python\n{code}\n```"


def livecodebench(question: str, starter_code: str = "") -> list[Message]:
    """LiveCodeBench's prompt for chat models."""
    form, code = (_LCB_WITH_STARTER, starter_code) if starter_code else (_LCB_STDIN, "# YOUR CODE HERE")
    text = (
        f"### Question:\n{question}\n\n### Format: {form}\n{fenced(code)}\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    return chat(text, LCB_SYSTEM)
