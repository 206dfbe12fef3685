"""The verifiers, on the forms in which answers are written: right, wrong, and such as cannot be read."""

import threading

import pytest

from vl_reward.labelling import formulas
from vl_reward.labelling.verifiers import (
    VERIFIERS,
    accepted_answers,
    check_answers,
    exact,
    final_answer,
    mathematical,
    multiple_choice,
    read_responses,
)


# Each of these says B.
SAYS_B = r"""
Answer: B
Answer: b
Answer: (B)
Answer: [B]
Answer: {B}
Answer: <B>
Answer: "B"
Answer: B.
Answer: B. a cat
Answer: b. a cat
Answer: B) a cat
Answer: (B) a cat
Answer: (B). a cat
Answer: B: a cat
Answer: B - a cat
Answer: B – a cat
Answer: B (a cat)
Answer: B, because it is red
Answer: B, since A is wrong
Answer: B because (A) is not red and (C) is.
Answer: (B), which shows a cat
Answer: B. Reason: A and C are wrong.
Answer: B is correct.
Answer: Option B
Answer: option (B) is the correct answer
Answer: **B**
Answer: **B**. A cat
Answer: *B*
Answer: __B__
Answer: `B`
**Answer**: B
**Answer:** B
**Answer: B**
**Final Answer**: (B)
**Final Answer:** **B**
### Final Answer: B
## Answer⏎B
Final Answer⏎B
Final Answer:⏎⏎(B)
ANSWER: B
answer: B
Answer : B
Answer = B
Ans: B
The answer is B.
The answer is: B
The answer is (B) a cat.
The correct answer is B.
The correct answer is **B**.
The correct answer is option B.
The correct option is (B).
The best choice is B.
The right answer would be B.
The answer to the question is B.
So the final answer is $\boxed{B}$.
Therefore, option B is correct.
(B) is the correct answer.
I choose B.
I would choose (B).
\boxed{B}
$\boxed{B}$
\boxed{(B)}
\boxed{\text{B}}
\boxed{\textbf{B}}
\boxed{\mathrm{B}}
\boxed{\mathbf{(B)}}
\boxed{\text{(B) a cat}}
\boxed{\text{B. a cat}}
\boxed{ B }
\[\boxed{B}\]
\fbox{B}
\boxed{\boxed{B}}
\boxed{\text{Answer: B}}
Answer: $B$
Answer: $\text{B}$
Answer: \(B\)
Answer: \(\mathbf{B}\)
Answer: \textbf{B}
\textbf{Final Answer:} B
Answer: \boxed{B}
<answer>B</answer>
<answer> (B) </answer>
<answer>B. a cat</answer>
<answer>The answer is B.</answer>
<answer>\boxed{B}</answer>
<think>Answer: A? No.</think><answer>B</answer>
<think>The answer is A.</think>⏎Answer: B
<think>\boxed{A}</think>⏎The answer is B.
It may be A.</think>⏎\boxed{B}
<|begin_of_box|>B<|end_of_box|>
{"answer": "B"}
Answer: A⏎No, that is the dog.⏎Answer: B
\boxed{A} is what I thought first.⏎Final Answer: B
\boxed{12} cm, so the second option.⏎Answer: B
Answer: <b>B</b>
Answer: Ｂ
Answer： （Ｂ）
Answer: Ⓑ
答案：B
答案：B。
答案: （B）
答案：【B】
答案：Ｂ
答案是B
答案是 B。
答案为：B
答案选B
答案B
正确答案是B。
正确答案：**B**
正确选项是B
最终答案：B
最终答案：\boxed{B}
因此，答案是（B）。
故选B。
故选：B
所以选择B。
应该选 B
选项B正确
B选项正确
答案：B，因为它是红色的。
答案：B。因为A是错的
答案：B、猫
答案：B. 猫
答案：B选项
综上所述，正确答案为 (B) 一只猫。
B
(B)
B.
**B**
B. a cat
(B) a cat
It is red.⏎⏎B
It is red.⏎⏎**B**
the answer is **B) a cat**
Based on the image, the correct answer is:⏎⏎**B. a cat**
### Answer⏎**B**
The correct choice is **(B)** a cat.
\boxed{\text{Option B}}
\boxed{\rm B}
{\bf Answer:} B
Answer: “B”
Answer: 「B」
Answer: ［Ｂ］
Answer: 《B》
Answer: choice (B)
Answer -> B
Answer → B
Answer - B
Option: B
Option B
Selected option: B
Conclusion: B
It should be B.
The answer must be B!
The answer is therefore B.
The answer is clearly B.
The correct answer here is B.
Thus, B is the answer.
B is correct because it is red
<ANSWER>B</ANSWER>
<final_answer>⏎B⏎</final_answer>
<think>x</think>B
<think>⏎long A⏎</think>⏎⏎(B)
B, because it is red
B because it is red.
B - a cat
Answer: B as shown in the picture
Answer: B⏎⏎Explanation: A is wrong and C is wrong.
Answer: B⏎The answer A is wrong.
Answer: B. It is not A.
Answer: B, not A.
Answer: B. The answer is in the picture.
```⏎B⏎```
- B
[[B]]
Answer: ***B***
Answer: \underline{B}
\boxed{\textcolor{red}{B}}
Answer: &nbsp;B
{'answer': 'B'}
{"final_answer": "B"}
答：B
我认为答案是B
正确答案应为B
正确的答案是B。
本题选B。
故本题答案为B
答案应该是B
因此正确选项为B。
"""
# Each of these says something else, or more than one.
SAYS_NOT_B = r"""
Answer: C
Answer: (C) a bird
Answer: C, because B is wrong
The answer is C.
The answer is not B. The answer is C.
\boxed{\text{C}}
\boxed{B} at first.⏎Answer: C
Answer: B⏎Wait. Answer: C
<think>Answer: B</think><answer>C</answer>
Answer: B and C
Answer: B, C
Answer: B or C
Answer: A, B, and C
Answer: (B) and (C)
Answer: B/C
Answer: B & C
Answer: BC
Answer: B C
Answer: both B and C
\boxed{B, C}
\boxed{\text{B and C}}
答案：C
答案：C，因为B不对
答案：B和C
答案：B、C
答案是B或C
故选C。
C
(C) a bird
I see a cat.
"""
# Each of these gives an answer that names no option, or does not say which.
UNREADABLE_CHOICE = r"""
\boxed{B
I see B and nothing else here.
Answer: a cat
Answer: A cat
Answer: Because
Answer: not B
Answer: B is wrong
Answer: neither
Answer: none of the above
Answer: I think it is the second one
Answer: B. a cat C. a bird
Answer: (B) a cat, (C) a bird
Answer: B? No, C
Answer: B. No, wait, C
Answer: B-52
Answer: B超
Answer: T-shirt
Answer: P.M.
Answer: anything but B
Answer: All except B
Answer: B?
Answer: B is incorrect
The answer can't be B
A or B, I think
Answer: 2
\boxed{2}
The answer is the second option.
答案：一只猫
答案是第二个
答案：不是B
"""
MATH = [
    ("Answer: 73", "73", True),
    ("**Final Answer**: 73", "73", True),
    ("The answer is 73.", "73", True),
    ("So we get 70 + 3, and the final answer is $73$.", "73", True),
    ("Answer: seven", "7", True),
    ("答案：73", "73", True),
    ("答案是７３。", "73", True),
    ("答：73", "73", True),
    ("#### 73", "73", True),
    ("73", "73", True),
    ("$73$", "73", True),
    (r"\boxed{73}", "73", True),
    (r"\boxed{12} is a part of it.⏎Final Answer: 73", "73", True),
    (r"\boxed{73} is a part of it.⏎Final Answer: 12", "73", False),
    (r"Answer: \boxed{73}", "73", True),
    (r"The answer is⏎\[⏎73⏎\]", "73", True),
    ("The answer is⏎$$⏎73⏎$$", "73", True),
    ("<think>12</think><answer>73</answer>", "73", True),
    ("Answer: x = 73", "73", True),
    ("Answer: $x=73$", "73", True),
    ("Answer: 73", "x = 73", True),
    ("Answer: 73, because 70 + 3 = 73", "73", True),
    ("Answer: 73. This is 70 + 3.", "73", True),
    ("Answer: 73.0", "73", True),
    ("Answer: about 73", "73", True),
    ("Answer: 1,234", "1234", True),
    ("Answer: 1,234,567.5", "1234567.5", True),
    ("Answer: 1 234", "1234", True),
    (r"\boxed{1{,}234}", "1234", True),
    (r"\boxed{1\,234}", "1234", True),
    ("Answer: 1234", "1,234", True),
    ("Answer: 5 cm", "5", True),
    ("Answer: 5cm", "5", True),
    ("Answer: 5", "5 cm", True),
    ("Answer: 5 centimeters", "5 cm", True),
    (r"\boxed{5\text{ cm}}", "5", True),
    (r"\boxed{5\,\mathrm{cm}}", "5", True),
    ("Answer: 12cm^2", "12", True),
    ("Answer: 12 cm²", "12", True),
    (r"\boxed{12\text{ cm}^2}", "12", True),
    ("Answer: 12 square feet", "12", True),
    ("Answer: 60 km/h", "60", True),
    ("Answer: 9.8 m/s^2", "9.8", True),
    ("Answer: 12 apples", "12", True),
    ("答案：5厘米", "5", True),
    ("答案：5 个苹果", "5", True),
    ("答案：5元", "5", True),
    ("Answer: $5", "5", True),
    (r"Answer: \$5", "5", True),
    ("Answer: 5 dollars", "$5", True),
    ("Answer: 45°", "45", True),
    (r"\boxed{45^\circ}", "45", True),
    ("Answer: 45 degrees", r"45^\circ", True),
    ("Answer: 50%", "50", True),
    ("Answer: 50%", "0.5", True),
    ("Answer: 50 percent", "50%", True),
    (r"\boxed{50\%}", "50", True),
    ("Answer: 0.5", "50%", True),
    ("答案：５０％", "50%", True),
    ("Answer: 1/2", "0.5", True),
    (r"\boxed{\frac{1}{2}}", "0.5", True),
    (r"\boxed{\dfrac12}", "1/2", True),
    ("Answer: -3", "-3", True),
    ("Answer: −3", "-3", True),
    ("Answer: 2π", r"2\pi", True),
    (r"Answer: $2\sqrt{2}$", r"\sqrt{8}", True),
    ("Answer: x^2 - 1", "(x-1)(x+1)", True),
    ("Answer: (3, 4)", "(3,4)", True),
    (r"\boxed{\{1, 2\}}", "{2, 1}", True),
    ("Answer: x > 3", "x>3", True),
    ("Answer: 73", 73, True),
    ("Answer: 73", 73.0, True),
    ("Answer: 0", 0, True),
    ("Answer: 0.25", 0.25, True),
    ("Answer: 1/4", ["0.25", "0.3"], True),
    ("Answer: 74", "73", False),
    ("Answer: 173", "73", False),
    ("Answer: -73", "73", False),
    ("Answer: 7.3", "73", False),
    ("Answer: 1", 0, False),
    ("Answer: 6 cm", "5 cm", False),
    ("Answer: 6 cm", "5", False),
    ("Answer: 12", "1/2", False),
    ("Answer: 3 or 73", "73", False),
    ("Answer: 3, 73", "73", False),
    ("Answer: 73x", "73", False),
    ("Answer: 2x + 1", "2x + 2", False),
    (r"\boxed{\frac{1}{3}}", "0.5", False),
    ("Answer: 40%", "0.5", False),
    ("答案：74", "73", False),
    ("74", "73", False),
    ("I see 12 and nothing else.", "73", False),
    ("I see 73 and nothing else.", "73", None),  # not marked as the answer
    ("Answer: 3:4", "3/4", True),
    ("Answer: 1e3", "1000", True),
    ("Answer: 1.5 × 10^3", "1500", True),
    ("Answer: ½", "0.5", True),
    ("Answer: 1½", "1.5", True),
    ("Answer: 1 1/2", "1.5", True),
    ("Answer: √2", r"\sqrt{2}", True),
    ("Answer: x**2 - 1", "x^2-1", True),
    ("Answer: 3·x", "3x", True),
    ("Answer: ∞", r"\infty", True),
    (r"Answer: $2\pi$ cm", r"2\pi", True),
    (r"Answer: 2\pi \text{ cm}", r"2\pi", True),
    ("Answer: $x = 3$ or $x = 4$", "3, 4", True),
    (r"Answer: $\angle ABC = 45^\circ$", "45", True),
    ("Answer: The area is 5", "5", True),
    ("Answer: area = 5", "5", True),
    ("Answer: 5 miles per hour", "5", True),
    ("Answer: 25°C", "25", True),
    ("答案：5平方米", "5", True),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
    ("Answer: (A) 5", "5", True),
    ("The final answer is 5. I hope it is correct.", "5", True),
    ("Answer: 5!", "120", True),
    ("Answer: 5ab", "5", False),
    ("Answer: 5n", "5", False),
    ("Answer: [1, 2]", "(1,2)", False),
    ("Answer: (1, 2]", "(1,2]", True),
    ("Answer: 1.5/2", "0.75", True),
    ("Answer: 5t", "5", False),
    ("Answer: 5^2", "5", False),
    ("Answer: 5 + x", "5", False),
    ("Answer: {5, 6}", "5", False),
    ("Answer: 5 and a half", "5", None),
    ("Answer: between 4 and 5", "5", None),
    ("Answer: 5!", "5", None),  # a factorial, or enthusiasm
    ("Answer: 5 m", "5 cm", None),
    ("Answer: 5 million", "5", None),
    ("Answer: 5 dozen", "5", None),
    ("答案：5万", "5", None),
    ("Answer: more than 73", "73", None),
    ("Answer: a cat", "73", None),
    ("Answer: the sum of both sides", "73", None),
    ("Answer: it is the same as before", "73", None),
    (r"\boxed{\frac{1}{}}", "73", None),
    (r"\boxed{\text{cannot be determined}}", "73", None),
    ("Answer: 73", "a cat", None),
    # One value in two notations.
    ("Answer: 7,5", "7.5", None),
    ("Answer: 1.414", r"\sqrt{2}", None),
    ("Answer: 3.14", r"\pi", None),
    ("Answer: 0.333", "1/3", None),
    ("Answer: 0.333", "0.33", None),
    ("Answer: 0.33", "0.333", None),
    ("Answer: 3.15", r"\pi", False),
    ("Answer: 0.5", "0.45", False),
    ("Answer: x>3", r"(3,\infty)", None),
    ("Answer: $5 < x \\le 7$", "(5,7]", None),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", "(1,2)", None),
    ("Answer: A(1,2)", "(1,2)", None),
    ("Answer: C(5,2)", "10", None),
    ("Answer: log 100", "2", None),
    ("Answer: 7 or 8", "7", False),
    ("Answer: 6 and 7", "7", False),
    # No mark says that this is the answer, but it is there.
    ("We get 7 (not 8).", "7", None),
    ("First 5.⏎3 × 10^5", "300000", None),
    ("x \\in [1, 2)", "[1,2)", None),
    ("所以面积为12平方厘米", "12", None),
    ("7 is the first.⏎So we get 8.", "7", False),
]
EXACT = [
    ("I see 4 and 5. Answer: 9", "9", True),
    ("Answer: Yes.", "yes", True),
    ("Answer: yes, there is a cat", "yes", True),
    ("The answer is **No**, since the cat is black.", "no", True),
    ("Answer: a cat", "cat", True),
    ("Answer: the cat", "a cat", True),
    ('Answer: "cat"', "cat", True),
    (r"\boxed{\text{cat}}", "cat", True),
    ("Answer:  New   York", "new york", True),
    ("Answer: 9, because 4 + 5 = 9", "9", True),
    ("Answer: nine", "9", True),
    ("Answer: 9.0", "9", True),
    ("Answer: 9 apples", "9", True),
    ("答案：猫。", "猫", True),
    ("答案是“猫”", "猫", True),
    ("答案：是", "是", True),
    ("Answer: 9", 9, True),
    ("Answer: 9", 9.0, True),
    ("Answer: 0", 0, True),
    ("Answer: 9", ["nine", "9"], True),
    ("Answer: kitten", ["cat", "kitten"], True),
    ("Answer: 9", [8, 9], True),
    ("Answer: yes", True, True),
    ("Answer: True", True, True),
    ("Answer: no", False, True),
    ("答案：对", True, True),
    ("Answer: yes", False, False),
    ("Answer: no", True, False),
    ("Answer: no, there is none", "yes", False),
    ("Answer: 19", "9", False),
    ("Answer: 1", 0, False),
    ("Answer: 8", ["9", "nine"], False),
    ("Answer: B. a cat", "a cat", True),
    ("Answer: B. a cat", "B", True),
    ("Answer: dog", "cat", False),
    ("Answer: dog, because no cat is there", "cat", False),
    ("答案：狗", "猫", False),
    ("I see 4 and 5.", "9", False),
    ("I see nothing.", 0, False),
    ("", "9", False),
    ("Answer: 9 or 10", "9", None),
    ("Answer: not a cat", "cat", None),
    ("Answer: cat and dog", "cat", None),
    ("Answer: red", "dark red", None),
    ("Answer: (1, 2)", "(1,2)", True),
    ("Answer: y = 2x + 3", "y=2x+3", True),
    ("Answer: 3, 400", "3400", False),
    ("Answer: cafe\u0301", "caf\u00e9", True),
    ("Yes, it is.", "yes", None),
    ("The color of the car is blue.", "blue", None),
    ("It is not blue.⏎It is red.", "blue", False),
    ("图中的猫是黑色的", "黑色", None),
    ("I see 49 of them.", "9", False),
    ("Answer: 9", "", None),
    ("Answer: 9", None, None),
    ("Answer: 9", [], None),
    ("Answer: 9", float("nan"), None),
]
FORMS = [(multiple_choice, form, "B", True) for form in SAYS_B.strip().splitlines()]
FORMS += [(multiple_choice, form, "B", False) for form in SAYS_NOT_B.strip().splitlines()]
FORMS += [(multiple_choice, form, "B", None) for form in UNREADABLE_CHOICE.strip().splitlines()]
for gold, named in {
    "A": {"A": True, "A.": True, "A. a cat": True, "A, because": True, "A and B": False, "A cat": None, "a cat": None},
    "A, C": {"A, C": True, "C and A": True, "AC": True, "A、C": True, "A": False, "ABC": False, "C, B": False},
    "(B)": {"B": True, "C": False},
    "B. a cat": {"B": True, "(B)": True, "C. a dog": False},
    "Ｂ": {"B": True, "C": False},
}.items():
    FORMS += [(multiple_choice, f"Answer: {form}", gold, verdict) for form, verdict in named.items()]
for form, verdict in {"A": True, "B": True, "C": False, "A, B": False, "a cat": True, "a dog": None}.items():
    FORMS.append((multiple_choice, f"Answer: {form}", ["A", "B", "a cat"], verdict))
FORMS += [(mathematical, *case) for case in MATH] + [(exact, *case) for case in EXACT]


def test_forms_of_answers():
    """An arrow is a line's end."""
    cases = [(verify, form.replace("⏎", "\n"), answer, verdict) for verify, form, answer, verdict in FORMS]
    found = [(*case, "found", case[0](*case[1:3])) for case in cases]
    assert len(found) > 400
    assert [case for case in found if case[-1] is not case[3]] == []


@pytest.mark.parametrize("verify", VERIFIERS.values())
def test_what_gives_no_answer_is_not_correct(verify):
    for response in (
        "",
        "I see a cat.",
        "Answer:",
        "**Answer**: ",
        r"\boxed{}",
        "<think>Answer: B</think>",
    ):
        assert final_answer(response) is None and verify(response, "B") is False, response
    assert verify("Answer: B", None) is None


def test_emptiness_is_not_falsehood():
    answers = (0, 0.0, False, "0", "", " ", None, [], [None, 0], float("nan"))
    counts = [len(accepted_answers(answer)) for answer in answers]
    assert counts == [1, 1, 6, 1, 0, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="a string, a number, a boolean, or a list"):
        exact("Answer: 9", {"value": 9})


def test_answers_are_checked_before_the_work():
    rows = [{"id": "one", "answer": "B"}, {"id": "two", "answer": 0}]
    check_answers(exact, rows, needed=True)
    with pytest.raises(ValueError, match="row two: the answer is 0, and `multiple_choice` compares the letters"):
        check_answers(multiple_choice, rows)
    check_answers(exact, [{"id": "three", "answer": None}, {"id": "four"}])
    with pytest.raises(ValueError, match="row three: it has no `answer`"):
        check_answers(exact, [{"id": "three", "answer": ""}], needed=True)


def test_a_formula_that_takes_too_long_cannot_be_read(monkeypatch):
    monkeypatch.setattr(formulas, "TIMEOUT_SECONDS", 1)
    assert mathematical(r"\boxed{9^{9^{9^{9}}}}", "73") is None


def test_mathematics_in_a_thread():
    """math-verify's timeouts want the main thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(mathematical(r"\boxed{\sqrt{12}}", r"2\sqrt{3}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_the_correct_answer_is_parsed_once():
    formulas.formula.cache_clear()
    responses = [rf"\boxed{{{number}x}}" for number in range(8)]
    read = read_responses(mathematical, [{"responses": responses, "answer": r"\frac{6x}{2}"}])
    assert read == {"answers": [[f"{number}x" for number in range(8)]], "is_correct": [[n == 3 for n in range(8)]]}
    assert formulas.formula.cache_info().misses == 9
