"""The calculator: values by hand, Python's Fractions as the oracle, and for the rest nothing but ArithmeticFault."""

import asyncio
import json
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments.mathematics.arithmetic import (
    MAX_CHARACTERS,
    ArithmeticFault,
    calculation,
    calculator,
    evaluate,
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12+30", "42"),
        (" 12 + 30 ", "42"),
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("2-3-4", "-5"),
        ("48/4/2", "6"),
        ("48/(4/2)", "24"),
        ("-2*-3", "6"),
        ("--5", "5"),
        ("+5-+2", "3"),
        ("-(2+3)", "-5"),
        ("0.1+0.2", "0.3"),
        (".5*4", "2"),
        ("4.*2", "8"),
        ("1/3", "0.3333333333"),
        ("2/3", "0.6666666667"),
        ("-1/8", "-0.125"),
        ("0*5", "0"),
        ("0/5", "0"),
        ("100.50-0.50", "100"),
        ("100.50-0.1", "100.4"),
        ("99999999999999999999+1", "100000000000000000000"),
        ("1/1000000", "0.000001"),
        ("12345678901.5*1", "12345678900"),
        ("1/3*3", "1"),
        ("007", "7"),
    ],
)
def test_values_by_hand(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "ends too early"),
        ("   ", "ends too early"),
        ("1+", "ends too early"),
        ("-", "ends too early"),
        ("(", "ends too early"),
        ("()", "unexpected ')'"),
        ("(1", "missing )"),
        ("1)", "unexpected ')'"),
        ("1 2", "unexpected '2'"),
        ("(1)(2)", "unexpected '('"),
        ("2**3", "unexpected '*'"),
        ("560//10", "unexpected '/'"),
        ("1/0", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("1e3", "unexpected 'e'"),
        ("1,200+1", "unexpected ','"),
        ("$5", "unexpected '$'"),
        ("50%", "unexpected '%'"),
        ("1.2.3", "unexpected '.3'"),
        (".", "unexpected '.'"),
        ("2x3", "unexpected 'x'"),
        ("__import__('os')", "unexpected '_'"),
        ("2\u00b2", "unexpected"),
        ("5\n;6", "unexpected ';'"),
    ],
)
def test_faults_say_what_is_wrong(expression, words):
    with pytest.raises(ArithmeticFault) as fault:
        evaluate(expression)
    assert words in str(fault.value)


numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 1000, places=3).map(str),
    st.sampled_from([".5", "7.", "0", "0.0", "00012"]),
)


def compounds(inner):
    spaces = st.sampled_from(["", "", " "])
    binary = st.tuples(inner, spaces, st.sampled_from("+-*/"), spaces, inner).map("".join)
    return st.one_of(binary, inner.map("({})".format), st.tuples(st.sampled_from("+-"), inner).map("".join))


expressions = st.recursive(numbers, compounds, max_leaves=12).filter(lambda text: len(text) <= MAX_CHARACTERS)


def by_python(expression: str) -> Fraction:
    """The value that Python's grammar and exact fractions give."""
    return eval(re.sub(r"\d+\.?\d*|\.\d+", r"Fraction('\g<0>')", " ".join(expression.split())), {"Fraction": Fraction})


@given(expressions)
def test_agrees_with_exact_fractions(expression):
    try:
        exact = by_python(expression)
    except ZeroDivisionError:
        with pytest.raises(ArithmeticFault, match="division by zero"):
            evaluate(expression)
        return
    found = evaluate(expression)
    if exact.denominator == 1:
        assert found == str(exact.numerator)
    else:
        assert abs(Fraction(found) - exact) <= abs(exact) * Fraction(5, 10**10)
        assert len(found.lstrip("-0.").replace(".", "").rstrip("0")) <= 10


@given(expressions)
def test_a_result_can_stand_in_the_next_expression(expression):
    try:
        found = evaluate(expression)
    except ArithmeticFault:
        return
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", found)
    assert evaluate(found) == found


@given(st.one_of(st.text(max_size=250), st.text("0123456789.+-*/() ", max_size=250)))
def test_any_text_gives_a_value_or_an_arithmetic_fault(text):
    try:
        found = evaluate(text)
    except ArithmeticFault as fault:
        assert str(fault)
    else:
        assert abs(Fraction(found) - by_python(text)) <= abs(by_python(text)) * Fraction(5, 10**10)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "(" * 100_000 + "1" + ")" * 100_000,
        "-" * 100_000 + "1",
        "9" * 1_000_000,
        "(" * MAX_CHARACTERS,
        "(" * 99 + "1" + ")" * 98,
    ],
)
def test_deep_and_long_texts_are_faults(text):
    with pytest.raises(ArithmeticFault):
        evaluate(text)


@pytest.mark.parametrize("text", ["(" * 99 + "1" + ")" * 99, "-" * 198 + "1", "1" * MAX_CHARACTERS])
def test_the_longest_texts_that_are_read(text):
    assert evaluate(text) == text.strip("()-")


def test_the_smallest_and_the_largest_results():
    assert evaluate("1/" + "9" * 198) == "0." + "0" * 197 + "1"
    assert evaluate("9" * 100 + "*" + "9" * 99) == str((10**100 - 1) * (10**99 - 1))


def test_the_tool_answers_or_tells_the_model_why_not():
    answer = asyncio.run(calculator.call('{"e": "48/2"}'))
    assert (answer.text, answer.fault) == ("24", None)
    answer = asyncio.run(calculator.call('{"e": "48/0"}'))
    assert (answer.text, answer.fault) == ("Error: division by zero", "tool/error")


def test_a_demonstrated_calculation_is_what_the_tool_answers():
    call, answer = calculation("48/2")
    assert (call.role, call.channel, call.recipient) == ("assistant", "commentary", "functions.calculator")
    assert json.loads(call.content) == {"e": "48/2"}
    assert (answer.role, answer.name) == ("tool", "functions.calculator")
    assert answer.content == asyncio.run(calculator.call(call.content)).text == "24"
    with pytest.raises(ArithmeticFault):
        calculation("48//2")
