"""Comparing mathematics: MATH-500 and AIME in equivalent and perturbed forms, and workers that hang, die and leak."""

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments.mathematics import answers as answers_module
from lockstep.environments.mathematics import pool as pool_module
from lockstep.environments.mathematics.answers import Comparison, cleaned, compared, equal, without_worker
from lockstep.environments.mathematics.boxed import last_box
from lockstep.environments.mathematics.pool import MathPool, PoolOptions
from lockstep.environments.mathematics.rows import read_math_rows
from lockstep.environments.mathematics.stated import number_alone
from lockstep.rollout.tool import InfrastructureError

HANGS = r"9^{9^{9^{9}}}"
UNREADABLE = "(" * 150 + "5" + ")" * 150  # math-verify's parser takes seconds for it


def references(folder: Path) -> list[str]:
    """The answers of a folder's files, read here and not by the loader that they test elsewhere."""
    rows = []
    for file in sorted(folder.glob("*.json*")):
        text = file.read_text(encoding="utf-8")
        rows += [json.loads(line) for line in text.split("\n") if line] if file.suffix == ".jsonl" else json.loads(text)
    return [row["answer"] for row in rows if row["answer"]]


def equivalent(reference: str) -> set[str]:
    """Other ways to write a reference."""
    spelled = reference.replace(r"\dfrac", r"\frac")
    forms = {reference, f"${reference}$", f"{reference}.", f" {reference} ", spelled.replace(r"\frac", r"\dfrac")}
    forms.add(spelled.replace(r"\frac", r"\tfrac"))
    if not re.search(r"text|mbox", reference):
        forms.add(re.sub(r"([+,=])", r" \1 ", reference) if not re.search(r"[0-9],", reference) else reference)
    if not re.search(r"\\left|[\[\]]|begin", reference):
        forms.add(reference.replace("(", r"\left(").replace(")", r"\right)"))
    if (number := number_alone(cleaned(reference))) is None:
        return forms | symbolic_forms(reference)
    forms |= {f"x = {reference}", f"{number}^\\circ", rf"\frac{{{2 * number.numerator}}}{{{2 * number.denominator}}}"}
    forms.add(rf"{100 * number}\%")
    if not re.search(r"text|mbox", reference):
        forms |= {rf"{reference}\text{{ units}}", rf"{reference} \text{{ cm}}^2", rf"{reference}\%"}
    if float(number) == number and abs(number) < 10**9:
        forms.add(f"{float(number):.12f}".rstrip("0").rstrip("."))
    return forms


def symbolic_forms(reference: str) -> set[str]:
    forms = set()
    if match := re.fullmatch(r"([^+\-()\[\]{}=,]+?) ?\+ ?([^+\-()=,]+)", reference):
        forms.add(f"{match[2]} + {match[1]}")
    if "pmatrix" in reference:
        forms.add(reference.replace("pmatrix", "bmatrix"))
    if match := re.fullmatch(r"([0-9]+) ?\\pi", reference):
        forms.add(rf"\pi \cdot {match[1]}")
    if match := re.fullmatch(r"(-?[^,\\(){}]+), ?(-?[^,\\(){}]+)", reference):
        forms.add(rf"\{{{match[2]}, {match[1]}\}}")
    return forms


def different(reference: str) -> set[str]:
    """Other answers, near a reference."""
    digits = {
        reference[:i] + str((int(sign) + 1) % 10) + reference[i + 1 :]
        for i, sign in enumerate(reference)
        if sign.isdigit() and not re.match(r".*\\(text|mbox)", reference[:i])
    }
    if (number := number_alone(cleaned(reference))) is not None:
        numbers = {number + 1, -number, number * 10, number / 10, number + Fraction(1, 1000)} - {number}
        hedged = {f"{reference}{between}{number + 1}" for between in (", ", " or ", r"\text{ or }")}
        undone = {f"{number - 1} + 1", rf"{number} \cdot 1"}
        others = {str(other) for other in numbers} | hedged | undone
        return digits | others | ({f"{reference}t"} if number else set())
    if r"\text" in cleaned(reference) or "_" in reference:
        return digits | {r"\text{nothing}", f"{reference}x"}
    return digits | different_symbols(reference)


def different_symbols(reference: str) -> set[str]:
    others = set()
    if not re.search(r"=|begin|,|pm", reference):
        others |= {f"-({reference})", f"{reference}+1", f"2({reference})"}
    if reference[0] == "(" and "infty" not in reference:
        others.add("[" + reference[1:])
    if reference[-1] == "]":
        others.add(reference[:-1] + ")")
    if (match := re.fullmatch(r"\((.+),([^,]+)\)", reference)) and match[1] != match[2]:
        others.add(f"({match[2]},{match[1]})")
    if re.search(r"[0-9]x", reference):
        others.add(reference.replace("x", "w"))
    return others


def check_references(answers: list[str], share: int) -> tuple[int, int]:
    """Of every form that needs a worker only one in `share` is compared, since that takes milliseconds. Gives how many
    equivalent and how many different forms were."""
    num_same = num_other = 0
    for i, reference in enumerate(answers):
        for form in sorted(equivalent(reference)):
            boxed = last_box(rf"So it is \boxed{{{form}}}.")
            assert boxed == form.strip()
            quick = without_worker(form, reference)
            if quick is not None or i % share == 0:
                assert equal(form, reference), (reference, form)
                num_same += 1
        for form in sorted(different(reference)):
            quick = without_worker(form, reference)
            if quick is not None or i % share == 0:
                assert not equal(form, reference), (reference, form)
                num_other += 1
    return num_same, num_other


def test_math_500_and_aime_references_equal_their_other_forms_and_no_others(math_folders):
    answers = references(math_folders / "math500")
    symbolic = [answer for answer in answers if number_alone(cleaned(answer)) is None]
    assert (len(answers), len(symbolic)) == (500, 100)
    assert check_references(symbolic, 25)[0] > 200
    aime = references(math_folders / "aime")
    assert len(aime) == 1005
    check_references(aime[::5], 10**9)
    check_references([answer for answer in answers if answer not in symbolic], 10**9)


@pytest.mark.slow
def test_all_references_with_all_their_forms(math_folders):
    answers = references(math_folders / "math500")
    assert check_references(answers, 1) > (5000, 5400)
    assert check_references(references(math_folders / "aime"), 1) > (11_000, 12_000)


@pytest.mark.slow
def test_every_training_reference_is_itself(math_folders):
    """7470, symbolically too, but for 05:00, which math-verify does not read; it is compared as text."""
    answers = references(math_folders / "math_train")
    assert len(answers) == 7470
    assert all(equal(answer, answer) for answer in answers)
    symbolic = sorted({cleaned(answer) for answer in answers if number_alone(cleaned(answer)) is None})
    unread = [answer for answer in symbolic if answers_module.pool().compare(answer, answer) != "equal"]
    assert unread == ["05:00"]


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("025", "25", True),
        (r"2\left(\frac79,\frac29\right)", r"\left(\frac79,\frac29\right)", False),
        (r"-\left(\frac79,\frac29\right)", r"\left(\frac79,\frac29\right)", False),
        (r"\left(\frac79,\frac29\right)+1", r"\left(\frac79,\frac29\right)", False),
        (r"66\times17", "1122", False),  # computing is the policy's part, here and below
        (r"x=66\times17", "1122", False),
        (r"f(3) = 66\times17", "1122", False),
        (r"\theta = 66\times17", "1122", False),
        (r"66\cdot 17 \approx y", "1122", False),
        (r"x = 66\times17 = 1122 cm", "1122", None),
        (r"|AB| = 17", "17", None),
        (r"\gcd(92,76)", "4", False),
        (r"(25\cdot76)\mod 4", "0", False),
        (r"\sum_{k=23}^{92} k", "4025", False),
        (r"\dbinom{31}{28}", "4495", False),
        ("513^2 - 487^2", "26000", False),
        ("5!", "120", False),
        ("-5", "-5", True),
        (r"3\sqrt{13} \, \mathrm{cm}", r"3\sqrt{13}", True),
        (r"5 \; \text{square units}", "5", True),
        ("10,080", r"10,\!080", True),
        (r"11,\! 111,\! 111,\! 100", "11111111100", True),
        ("0.5", r"\frac12", True),
        (r"50\%", "0.5", True),
        (r"50\%", "50", True),
        ("0.5", r"50\%", True),
        ("0.5", "50", False),
        (r"5\%", "50", False),
        (r"0.005\%", "0.5", False),
        ("15", r"15\mbox{ cm}^2", True),
        ("15 cm^2", r"15\mbox{ cm}^2", True),
        (r"15\ \mathrm{cm}^2", r"15\mbox{ cm}^2", True),
        ("16", r"15\mbox{ cm}^2", False),
        (r"5\text{ or 6}", "5", None),
        ("5 or more", "5", None),
        ("3t", "3", None),
        ("3", "3t", None),
        ("7 2", "72", None),
        ("x=5", "5", True),
        ("5", "x=5", True),
        ("x=5", "x=6", False),
        ("y=5", "x=5", None),
        ("(C)", r"\text{(C)}", True),
        ("C", r"\text{(C)}", True),
        (r"\textbf{(D)}", r"\text{(C)}", False),
        ("c", "C", None),
        ("evelyn", r"\text{Evelyn}", True),
        (r"\text{Evelina}", r"\text{Evelyn}", False),
        ("odd", r"\text{even}", False),
        ("52_8", "52_{8}", True),
        ("52", "52_8", True),
        ("52_9", "52_8", False),
        ("42", "52_8", False),
        ("[-2,7]", r"x \in [-2,7]", True),
        (r"\left[-2,\ 7\right]", r"x \in [-2,7]", True),
        (r"2007+\frac{\pi}{2}", r"2007 + \frac\pi 2", True),
        ("8.24", r"\approx 8.24 \text{ mph}", True),
        (r"5\text{ million}", "5", False),
        (r"5\text{ million}\text{ dollars}", "5", False),
        (r"5\text{ million}", r"5\mbox{ million}", True),
        (r"5\text{ or six}", "5", False),
        (r"6\text{ dozen}", "6", False),
        ("6", r"6\text{ dozen}", False),
        (r"6\text{ squared}", "6", False),
        (r"6\text{ not}", "6", False),
        (r"6\text{ less than x}", "6", False),
        (r"6\text{ more}", "6", False),
        (r"4:51\text{ a.m.}", r"4\!:\!51 \text{ p.m.}", False),
        ("4:51", r"4\!:\!51 \text{ p.m.}", False),
        (r"4\!:\!51 \text{ p.m.}", r"4\!:\!51 \text{ p.m.}", True),
        ("4:51 PM", r"4\!:\!51 \text{ p.m.}", True),
        ("12_7", "12", False),
        ("6_{7}", "6", False),
        ("-12_7", "-12", False),
        ("-37_8", "-37_8", True),
        ("(3,4)", r"\{3,4\}", False),
        (r"\{1,2\}", "(1,2)", False),
        (r"\{1,2\}", "[1,2]", False),
        (r"x=\{1,2\}", "(1,2)", False),
        ("3=4", "4", False),
        ("3=4", "3", False),
        ("x=4", "4", True),
        (r"10\,000", "10000", True),
        ("10~000", "10{,}000", True),
        (r"10\ 000\text{ m}", "10000", True),
        (r"1\,234", "1,234", True),
        (r"1\,23", "123", None),
        ("", "5", False),
        ("$$", "5", False),
        ("5}", "5", False),
        ("{5", "5", False),
        ("}5{", "5", False),
        ("\ud8005", "5", False),
        ("5" + " " * 1000, "5", False),
        ("9" * 1001, "5", False),
        (r"\boxed{5}", "5", None),
        ("5e0", "5", None),
        ("\u20135", "-5", True),
        (r"\boldsymbol{17}", "17", True),
        (r"\bf{17}", "17", True),
        (r"\underline{17}", "17", True),
        (r"2{,}304\pi", r"2304\pi", True),
        (r"2,304\pi", r"2304\pi", True),
        ("(1,234)", "1234", None),
        (r"3\text{ to }1", "3:1", True),
        ("3{:}1", "3:1", True),
        ("6, 8, and 10", r"6, 8\text{, and }10", True),
        (r"2,3 \text{ and } 4", r"2, 3, \text{ and } 4", True),
        ("A, B", r"\text{A,B}", True),
        (r"\text{A}, \text{B}", r"\text{A, B}", True),
        ("A, C", r"\text{A,B}", None),
        ("October 30", r"\text{October 30}", True),
        ("(E)", r"\text{(E)},", True),
        ("(52)_8", "52_8", True),
        (r"52_{\text{eight}}", "52_8", True),
        ("52_{(8)}", "52_8", True),
        ("(52)_9", "52_8", False),
        (r"-2 \leq y \leq 7", "[-2,7]", True),
        (r"-2 < y \leq 7", "[-2,7]", None),
        ("x>0", r"(0,\infty)", True),
        ("0 < x", r"(0,\infty)", True),
        (r"x < -4 \text{ or } x > 4", r"(-\infty,-4)\cup (4,\infty)", True),
        (r"x \neq -8", r"(-\infty, -8) \cup (-8, \infty)", True),
        (r"(-\infty,-4)\bigcup(4,\infty)", r"(-\infty,-4)\cup (4,\infty)", True),
        (r"\lbrace 4,5,7\rbrace", r"\{4,5,7\}", True),
    ],
)
def test_what_text_and_numbers_decide(answer, reference, verdict):
    assert without_worker(answer, reference) is verdict


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}", True),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
        ("(b+2)(a+5)", "(a+5)(b+2)", True),
        ("-5i+6", "6 - 5i", True),
        ("(3,4)", "(3,4]", False),
        (r"2 \cdot 3 = 6", "6", True),
        (r"55 = 5\cdot 11", "55", True),
        (r"1.2\times 10^3", "1200", True),
        ("2^{10}", "1024", True),
        (r"(x,y)=\left(\frac79,\frac29\right)", r"\left(\frac79,\frac29\right)", True),
        (r"P=(3,4)", "(3,4)", True),
        (r"\begin{bmatrix}-1&0\\[4pt]0&-1\end{bmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", True),
        ("(-29,15)", "(15,-29)", False),
        (r"(3,\infty) \cup (-\infty, 2)", r"(-\infty, 2) \cup (3, \infty)", True),
        (r"\{-2,1-\sqrt5,1+\sqrt5\}", r"\{1\pm\sqrt{5},-2\}", True),
        (r"\begin{bmatrix}-1&0\\0&-1\end{bmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", True),
        (r"\begin{bmatrix}-1&0\\0&1\end{bmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", False),
        ("2x+3=y", "y = 2x + 3", True),
        ("y = 3x + 2", "y = 2x + 3", False),
        (r"6.72 \times 10^{-5}", ".0000672", True),
        (r"6.73 \times 10^{-5}", ".0000672", False),
        (r"\boxed{5}", "5", True),
        ("\u221a3/3", r"\frac{1}{\sqrt{3}}", True),
        ("\u03c0\u00b2", r"\pi^2", True),
        (r"x \ge 0", r"(0,\infty)", False),
        (r"x \leq -4 \text{ or } x > 4", r"(-\infty,-4)\cup (4,\infty)", False),
        (r"x^2-7x+12 \ge 0", r"(-\infty,3] \cup [4,\infty)", False),  # still to be solved
        ("A, C", r"\text{A,B}", False),
        ("9**9**9", "5", False),
        ("__import__('os').getcwd()", "5", False),
        (r"\text{__import__('os')._exit(3)}", "x+1", False),
        (r"\frac{1}{0}", "5", False),
        (r"\infty-\infty", r"\infty", False),
        ("(" * 3 + "5" + ")" * 3, "6", False),
        (r"5\text{ or 6}", "5", False),
        ("3t", "3", False),
        ("c", "d", False),
        ("5 less than x", "5", False),
        (r"1\,23", "123", False),
        ("5 pm", "5", False),
        ("5 million", "5", False),
        ("4=4", "4", True),
        (r"\{(1,2),(3,4)\}", "(1,2),(3,4)", True),
        ("x=(1,2)", "(1,2)", True),
    ],
)
def test_what_symbols_decide(answer, reference, verdict):
    assert without_worker(answer, reference) is None
    assert equal(answer, reference) is verdict
    assert asyncio.run(compared(answer, reference)) == Comparison(verdict)


@given(st.text(max_size=40), st.sampled_from(["5", r"\frac{\pi}{2}", r"\text{even}", "52_8", "(3,4]"]))
def test_quick_verdicts_raise_on_no_text_and_give_every_text_itself(text, reference):
    assert without_worker(text, reference) in (True, False, None)
    readable = answers_module._readable(text) and cleaned(text) != ""
    assert without_worker(text, text) is readable


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def running(pool: MathPool) -> list[int]:
    return [worker.process.pid for worker in list(pool._workers.queue) if worker is not None]


@pytest.fixture
def small_pool(monkeypatch):
    """One worker with little time, in place of the process's own pool."""
    pool = MathPool(PoolOptions(num_workers=1, cpu_s=0.3))
    monkeypatch.setattr(answers_module, "pool", lambda: pool)
    yield pool
    pool.close()


def test_a_late_answer_is_wrong_a_dead_worker_is_replaced_and_the_next_one_is_compared(small_pool):
    assert asyncio.run(compared("1+x", "x+1")) == Comparison(True)
    first = running(small_pool)
    before = descriptors()
    assert asyncio.run(compared(HANGS, "x+1")) == Comparison(False, "late")
    assert equal("1+x", "x+1") is True
    assert running(small_pool) != first and len(running(small_pool)) == 1
    assert not Path(f"/proc/{first[0]}").exists() and descriptors() == before
    os.kill(running(small_pool)[0], signal.SIGKILL)
    assert small_pool.compare("1+x", "x+1") == "crashed"
    assert small_pool.compare("1+x", "x+1") == "equal"


@pytest.mark.parametrize(
    ("answer", "reference", "quoted"),
    [
        ("19x + 1 - 4x - 81", "15x-80", True),
        ("15x - 80", "15x-80", False),
        (r"\sqrt{242}", r"11\sqrt2", True),
        ("19x+1-4x-81", "19x + 1 - 4x - 81", False),  # so is the reference
        ("x = 4", "x=4", False),
        ("4", "5", False),
        ("even", r"\text{even}", False),
    ],
)
def test_a_formula_of_the_problem_is_no_answer(answer, reference, quoted):
    problem = r"Simplify $19x + 1 - 4x - 81$ and $\sqrt{242}$ at $x = 4$; is it even or odd?"
    assert answers_module.is_quoted(answer, reference, problem) is quoted


@pytest.mark.slow
def test_what_a_formula_of_the_problem_earns_on_math500(math_folders):
    """Every formula between dollars, and every side of it, that is not the reference's own text: 17 rows without
    `is_quoted`; what is left is a number after all, or a letter that names an option."""
    earning = set()
    for row in read_math_rows(math_folders / "math500"):
        formulas = set(re.findall(r"\$([^$]{1,200})\$", row.problem))
        for formula in formulas | {side for one in formulas for side in re.split("[=,<>]", one) if side.strip()}:
            is_own = answers_module._squeezed(cleaned(formula)) == answers_module._squeezed(cleaned(row.answer))
            refused = is_own or answers_module.is_quoted(formula, row.answer, row.problem)
            if not refused and equal(formula, row.answer):
                earning.add(row.answer)
    assert earning == {"0.15", "0", r"\text{(C)}", "4.5", ".35625", "1"}


def test_who_blames_the_reference_does_not_wait_behind_other_answers(monkeypatch):
    """Late answers would else mask each other, and the right ones among them."""
    asked = []

    class Late:
        def submit(self, answer, reference):
            asked.append("submitted")
            future = pool_module.Future()
            future.set_result("late")
            return future

        def compare(self, answer, reference):
            asked.append((answer, reference))
            return "equal"

    late = Late()
    monkeypatch.setattr(answers_module, "pool", lambda: late)
    for _ in range(2):
        assert asyncio.run(compared("9^{9^{9^{7}}} x", r"\frac{\pi}{77}")).ended == "late"
    assert asked == ["submitted", (r"\frac{\pi}{77}", r"\frac{\pi}{77}"), "submitted"]


def test_a_reference_that_cannot_be_compared_is_not_the_answers_fault(small_pool):
    with pytest.raises(InfrastructureError, match=r"reference .\(\(.* with itself \(late\): remove its row"):
        asyncio.run(compared("6", UNREADABLE))


def test_workers_are_replaced_after_their_share_and_end_with_the_pool():
    pool = MathPool(PoolOptions(num_workers=1, comparisons_per_worker=2))
    before = descriptors()
    assert pool.compare("x", "y") == "different" and len(running(pool)) == 1
    pid = running(pool)[0]
    assert pool.compare("x", "x") == "equal" and running(pool) == []
    assert not Path(f"/proc/{pid}").exists() and descriptors() == before
    assert pool.compare("x", "x") == "equal"
    pid = running(pool)[0]
    pool.close()
    pool.close()
    assert not Path(f"/proc/{pid}").exists() and descriptors() == before
    with pytest.raises(InfrastructureError, match="closed"):
        pool.compare("x", "x")


def test_several_loops_and_threads_share_the_workers_without_blocking():
    async def many(which: int) -> tuple[list[Comparison], int]:
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        pairs = [(f"{n}+x", f"x+{n + (n % 2)}") for n in range(which, which + 6)]
        found = await asyncio.gather(*(compared(*pair) for pair in pairs))
        ticker.cancel()
        return found, ticks

    results = {}
    threads = [threading.Thread(target=lambda k=k: results.update({k: asyncio.run(many(k))})) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        found, ticks = results[k]
        assert [comparison.equal for comparison in found] == [n % 2 == 0 for n in range(k, k + 6)]
        assert ticks > 6


def failing(code: str, **options) -> MathPool:
    return MathPool(PoolOptions(num_workers=1, program=(sys.executable, "-c", code), **options))


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (lambda: failing("import json; print(json.dumps({'failed': 'no module'}))"), "no module; install it"),
        (lambda: failing("raise SystemExit(3)"), "it ended with 3"),
        (lambda: failing("import time; time.sleep(60)", wall_s=0.1), "within 0.1 s"),
        (lambda: MathPool(PoolOptions(num_workers=1, program=("/no/such/python",))), "cannot start"),
    ],
)
def test_a_worker_that_does_not_start_is_infrastructure(pool, words):
    before = descriptors()
    found = pool()
    for _ in range(2):
        with pytest.raises(InfrastructureError, match=re.escape(words)) as error:
            found.compare("x", "y")
        assert "\n" not in str(error.value)
    assert descriptors() == before and running(found) == []
    found.close()


def test_a_stuck_worker_is_infrastructure_and_not_the_answers_fault():
    code = "import json,sys; print(json.dumps({'ready': True}), flush=True); sys.stdin.readline(); sys.stdin.read()"
    pool = failing(code, wall_s=0.2)
    with pytest.raises(InfrastructureError, match=r"not answered within 0\.2 s"):
        pool.compare("x", "y")
    assert running(pool) == []
    pool.close()


def test_memory_is_limited():
    """A program that allocates is refused by the limits that the worker sets for itself."""
    code = (
        "import sys; sys.argv = ['', '1', str(1 << 28)]; sys.path.insert(0, {folder!r}); import worker\n"
        "worker.limited(1 << 28)\n"
        "try: bytes(1 << 29); print('held')\n"
        "except MemoryError: print('refused')\n"
        "try: open({file!r}, 'w').write('x' * 10); print('written')\n"
        "except OSError: print('refused')\n"
    )
    folder = Path(pool_module.__file__).parent
    program = code.format(folder=str(folder), file=os.devnull + "x")
    said = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert said.stdout.split()[0] == "refused", said


def test_no_worker_outlives_a_killed_trainer():
    """The trainer is killed while its worker hangs in a comparison: the kernel ends that one at its processor time."""
    code = (
        "import threading, time\n"
        "from lockstep.environments.mathematics.pool import MathPool, PoolOptions\n"
        "pool = MathPool(PoolOptions(num_workers=1, cpu_s=0.5))\n"
        "pool.compare('x', 'x')\n"
        "print(pool._workers.queue[0].process.pid, flush=True)\n"
        f"pool.compare({HANGS!r}, '5')\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    handle = os.pidfd_open(worker)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    ended, _, _ = select.select([handle], [], [], 30)
    os.close(handle)
    assert ended
