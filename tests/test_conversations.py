"""Rows in all the forms that conversations have: read alike by both collators and the scorer, or refused by name."""

import base64

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vl_reward import DataCollatorForVisionReward, RewardScorer
from vl_reward.data import encoding
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.data.encoding import encode_conversations, encode_prompts
from vl_reward.data.messages import as_messages, dialogue, split_pair, split_turns
from vl_reward.data.placeholders import place_images


COLLATORS = pytest.mark.parametrize("collator", [DataCollatorForVisionReward, DataCollatorForMPO])


def user(content):
    return {"role": "user", "content": content}


def said(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def text(words):
    return {"type": "text", "text": words}


def row(**changes):
    return {"id": "r9", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "images": []} | changes


def picture(colour="red", size=(56, 56)):
    return Image.new("RGB", size, colour)


def read(collator, batch):
    """The texts of a batch, what pads it left out."""
    return [
        collator.processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


# ---- Whatever goes wrong in a row


@COLLATORS
@pytest.mark.parametrize("error", [StopIteration(), IndexError("i"), KeyError("k"), RuntimeError("generator raised")])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_whatever_goes_wrong_in_a_row_is_an_error_with_its_name(processor, monkeypatch, collator, error, num_workers):
    def fail(messages, images):
        if "number 9" in str(messages):
            raise error
        return messages

    monkeypatch.setattr(encoding, "prepare_multimodal_messages", fail)
    rows = [row(id=f"r{i}", prompt=f"This is number {i}") for i in range(12)]
    loader = DataLoader(rows, 2, collate_fn=collator(processor), num_workers=num_workers)
    with pytest.raises(ValueError, match="row r9"):
        for _ in loader:
            pass


@COLLATORS
def test_what_goes_wrong_in_a_batch_names_its_rows(processor, monkeypatch, collator):
    def fail(*args, **kwargs):
        raise StopIteration

    monkeypatch.setattr(type(processor.tokenizer), "__call__", fail)
    with pytest.raises(ValueError, match="one of row r1, row r2: StopIteration"):
        collator(processor)([row(id="r1"), row(id="r2")])


@pytest.mark.parametrize("error", [StopIteration(), IndexError("i")])
def test_whatever_goes_wrong_in_a_completion_is_an_error_with_its_name(reward_model, processor, monkeypatch, error):
    def fail(messages, images):
        raise error

    monkeypatch.setattr(encoding, "prepare_multimodal_messages", fail)
    scorer = RewardScorer(reward_model, processor)
    with pytest.raises(ValueError, match="completion 0: "):
        scorer(["What?"], ["A cat."])
    with pytest.raises(ValueError, match="response 0 of row r9: "):
        scorer.score_candidates([{"id": "r9", "prompt": "What?", "images": None, "responses": ["A cat."]}])


# ---- The prompt in both places

QUESTION, ASKED = "Name a colour.", [user("Name a colour.")]
REPEATED = {
    "string": (QUESTION, ASKED, ASKED),
    "messages": (ASKED, ASKED, ASKED),
    "parts": ([user([text(QUESTION)])], ASKED, ASKED),
    "blanks": (f"{QUESTION}\n", ASKED, ASKED),
    "no prompt": (None, ASKED, ASKED),
    "a system turn in front": (QUESTION, [system("Be brief."), *ASKED], [system("Be brief."), *ASKED]),
    "a system turn in both": ([system("Be brief."), *ASKED], [system("Be brief."), *ASKED], ASKED),
    "the first turn of several": (
        "Hello.",
        [user("Hello."), said("Hi!"), *ASKED],
        [user("Hello."), said("Hi!"), *ASKED],
    ),
    "the last turn of several": (
        QUESTION,
        [user("Hello."), said("Hi!"), *ASKED],
        [user("Hello."), said("Hi!"), *ASKED],
    ),
    "the last turn again": ([user("Hello."), said("Hi!"), *ASKED], ASKED, ASKED),
    "one side alone": (QUESTION, ASKED, []),
    "turns in common after it": ([user("Hello.")], [said("Hi!"), *ASKED], [said("Hi!"), *ASKED]),
    "an answer that is begun": ([*ASKED, said("I say")], ASKED, ASKED),
}


@COLLATORS
@pytest.mark.parametrize("form", REPEATED)
def test_turns_of_the_prompt_that_a_response_repeats_count_once(processor, collator, form):
    prompt, *heads = REPEATED[form]
    words = "I say " if "begun" in form else ""
    sides = [[*head, said(f"{words}{answer}")] for head, answer in zip(heads, ("Blue.", "Seven."), strict=True)]
    made = collator(processor)
    texts = read(made, made([row(prompt=prompt, chosen=sides[0], rejected=sides[1])]))
    first = [user("Hello."), said("Hi!")] if "several" in form or "again" in form or "after" in form else []
    first = [system("Be brief.")] if "system" in form else first
    plain = [row(prompt=[*first, *ASKED], chosen=f"{words}Blue.", rejected=f"{words}Seven.")]
    assert texts == read(made, made(plain))
    assert all(one.count(QUESTION) == 1 for one in texts)


def test_the_scorer_reads_a_completion_that_repeats_the_prompt(reward_model, processor):
    scorer = RewardScorer(reward_model, processor)
    whole, answer = scorer([QUESTION, QUESTION], [[*ASKED, said("Blue.")], "Blue."])
    assert whole == answer


@COLLATORS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": [user("Other?"), said("A.")], "rejected": [user("Other?"), said("B.")]}, "begins with other turns"),
        ({"prompt": None, "chosen": [user("Q"), said("A.")], "rejected": [user("R"), said("B.")]}, "share no prompt"),
        ({"prompt": None}, "share no prompt"),
        ({"prompt": []}, "share no prompt"),
        ({"prompt": 7}, "neither a string nor a list of messages .*: 7"),
        (
            {"prompt": "Q", "chosen": [said("A"), user("S"), said("B")], "rejected": [said("C"), user("S"), said("B")]},
            "part before their last turn",
        ),
    ],
)
def test_conversations_that_do_not_fit_are_refused(processor, collator, changes, message):
    with pytest.raises(ValueError, match=f"row r9: .*{message}"):
        collator(processor)([row(id="good"), row(**changes)])


def test_images_keep_their_places_where_the_prompt_is_repeated():
    places = [user([text("See "), {"type": "image"}, text("?")])]
    for prompt, head in ((places, [user("See ?")]), ([user("See ?")], places)):
        assert split_pair(prompt, [*head, said("A")], "B")[0] == places


# ---- Several turns, and answers that are begun


@pytest.mark.parametrize("begun", ["I see", "I see ", [text("I "), text("see")]])
@pytest.mark.parametrize("images", [[], [picture()]])
def test_an_answer_that_is_begun_is_one_turn_of_what_sampling_saw_and_the_rest(processor, begun, images):
    prompt, rest = [user("Which digit is the larger?"), said(begun)], " 4 and 5."
    ids = encode_prompts(processor, [prompt], [images], ["p"])["input_ids"][0].tolist()
    end = processor.tokenizer.encode("<|im_end|>\n", add_special_tokens=False)
    sampled = ids + processor.tokenizer.encode(rest, add_special_tokens=False) + end
    batch = DataCollatorForMPO(processor)([row(prompt=prompt, chosen=rest, rejected=" 5.", images=images)])
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist() == sampled
    assert batch["completion_mask"][0].tolist()[: len(sampled)] == [0] * len(ids) + [1] * (len(sampled) - len(ids))
    if begun == "I see ":  # two blanks in one text are other tokens than in two
        return
    for completion in (rest, [said(rest)], [said([text(rest)])]):
        conversation = as_messages(prompt, completion)
        assert [message["role"] for message in conversation] == ["user", "assistant"]
        encoded = encode_conversations(processor, [conversation], [images], ["p"])
        assert encoded["input_ids"][0][encoded["attention_mask"][0].bool()].tolist() == sampled


def test_a_begun_answer_is_scored_as_one_turn(reward_model, processor):
    scorer = RewardScorer(reward_model, processor)
    two, one = scorer([[user("Which?"), said("I see")], "Which?"], [" 4 and 5.", "I see 4 and 5."])
    assert two == pytest.approx(one, abs=5e-6)
    with pytest.raises(ValueError, match="completion 0: the answer is empty"):
        scorer([[user("Which?"), said("I see")]], [" "])


def test_a_prompt_is_read_out_with_all_its_turns():
    assert (
        dialogue("What?")
        == dialogue([user("What?")])
        == dialogue([user([{"type": "image"}, text("What?")])])
        == "What?"
    )
    turns = [system("Be brief."), user([text("First?")]), said("4"), user("Sure?")]
    assert dialogue(turns) == "System: Be brief.\n\nUser: First?\n\nAssistant: 4\n\nUser: Sure?"


# ---- What a message says besides text and images

CALL = {"tool_calls": [{"type": "function", "function": {"name": "weather"}}]}


def linked(kind, link):
    """A question with a part in OpenAI's form."""
    return [user([{"type": kind, kind: link}, text("What?")])]


UNREAD = {
    "an image_url that is not there": linked("image_url", {"url": "a.png"}),
    "an image_url of the web": linked("image_url", {"url": "https://a.org/a.png"}),
    "an image_url without a url": linked("image_url", {}),
    "an image_url's detail": linked("image_url", {"url": "a.png", "detail": "low"}),
    "a video_url": linked("video_url", {"url": "a.mp4"}),
    "video": [user([{"type": "video", "video": "a.mp4"}, text("What?")])],
    "audio": [user([{"type": "audio", "audio": "a.wav"}]), said("Hm."), user("What?")],
    "no type": [user([{"text": "What?"}])],
    "a string among the parts": [user(["What?"])],
    "a key of a part": [user([{"type": "image", "url": "a.png"}])],
    "text in an image part": [user([{"type": "image", "text": "What?"}])],
    "an image that is held": [user([{"type": "image", "image": picture()}, text("What?")])],
    "tool calls": [user("What?"), {"role": "assistant", "content": "", **CALL}, user("Well?")],
    "a tool's turn": [user("What?"), said("I look."), {"role": "tool", "content": "21"}],
    "thoughts": [user("What?"), {**said("4"), "reasoning_content": "2 + 2"}, user("Sure?")],
    "from and value": [{"from": "human", "value": "What?"}],
    "no content": [{"role": "user"}],
    "bytes": [user(b"What?")],
    "a list of strings": ["What?"],
    "<image> without an image": "<image>\nWhat?",
    "<image> in a system's string": [system("<image>"), user("What?")],
}


@COLLATORS
@pytest.mark.parametrize("what", UNREAD)
def test_what_is_not_read_is_refused_in_the_prompt(processor, collator, what):
    with pytest.raises(ValueError, match="row r9: "):
        collator(processor)([row(prompt=UNREAD[what])])


@COLLATORS
@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(
    "answer",
    [
        *([], "", " \n", None, [said("")], [said([])], [said(None)], [said([text(None)])], [said([text(" ")])]),
        *([user("no")], [said("a"), user("no")], 7, [said(7)], {"role": "assistant", "content": "A."}, "no \ud83d"),
        *([{**said("A."), **CALL}], [said([text("A."), {"type": "image"}])], [said([{"type": "video", "video": "v"}])]),
    ],
)
def test_what_is_no_answer_is_refused(processor, collator, side, answer):
    with pytest.raises(ValueError, match="row r9: "):
        collator(processor)([row(id="good"), row(**{side: answer})])


@pytest.mark.parametrize("answer", [[], "", None, [user("no")], [said([])], 7, "no \ud83d"])
def test_the_scorer_refuses_what_is_no_answer(reward_model, processor, answer):
    with pytest.raises(ValueError, match="completion 1 of row b: "):
        RewardScorer(reward_model, processor)(["What?"] * 2, ["A cat.", answer], id=["a", "b"])


def test_another_image_in_a_repeated_turn_is_refused(reward_model, processor):
    """The turns that a completion repeats count once, so what they show would be dropped."""
    one, other = ([user([{"type": "image", "image": picture()}, text("What?")])] for _ in range(2))
    with pytest.raises(ValueError, match="completion 0: the answer repeats turns of the prompt and holds an image"):
        RewardScorer(reward_model, processor)([one], [other + [said("A cat.")]])


@pytest.mark.parametrize("what", UNREAD)
def test_the_scorer_refuses_what_it_does_not_read(reward_model, processor, what):
    if what != "an image that is held":  # GRPOTrainer's form
        with pytest.raises(ValueError, match="completion 0: "):
            RewardScorer(reward_model, processor)([UNREAD[what]], ["A cat."], [[]])


def test_keys_that_say_nothing_do_no_harm():
    padded = {
        "role": "user",
        "tool_calls": None,
        "name": "",
        "content": [{**text("What?"), "image_url": None, "index": None}],
    }
    assert as_messages([padded], []) == [user([text("What?")])]
    numbered = [user([{"type": "image", "index": 0}, text("or"), {"type": "image", "index": 1}])]
    assert as_messages(numbered, []) == [user([{"type": "image"}, text("or"), {"type": "image"}])]
    with pytest.raises(ValueError, match="`index` of an image part"):
        as_messages([user([{"type": "image", "index": 1}, {"type": "image", "index": 0}])], [])


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("messages", "n_images", "expected"),
    [
        ([user("What?")], 2, [[IMAGE, IMAGE, text("What?")]]),
        ([user("<image>\nWhat?")], 1, [[IMAGE, text("What?")]]),
        ([user("One <image> or\n<image>?")], 2, [[text("One "), IMAGE, text(" or"), IMAGE, text("?")]]),
        (
            [user("Hello."), said("Hi."), user("<image>What?")],
            1,
            [[text("Hello.")], [text("Hi.")], [IMAGE, text("What?")]],
        ),
        ([user([text("<image>What?")])], 1, [[IMAGE, text("What?")]]),
        ([user([text("Write <image> tags.")])], 0, [[text("Write <image> tags.")]]),
        ([user("Hi."), said("A <image>!")], 1, [[IMAGE, text("Hi.")], [text("A <image>!")]]),
        ([system("S"), user([text("?"), IMAGE])], 1, [[text("S")], [text("?"), IMAGE]]),
    ],
)
def test_images_stand_where_the_text_says(messages, n_images, expected):
    assert [message["content"] for message in place_images(messages, n_images)] == expected


@pytest.mark.parametrize(
    ("messages", "n_images", "message"),
    [
        ([user("<image> and <image>")], 1, r"Number of images provided \(1\) .* placeholders \(2\)"),
        ([user([IMAGE, text("<image>\nWhat?")])], 1, r"provided \(1\) .* placeholders \(2\)"),
        ([user([text("What?")])], 1, r"provided \(1\) .* placeholders \(0\)"),
        ([user([IMAGE])], 0, r"provided \(0\) .* placeholders \(1\)"),
        ([user("What?"), said("This: <image>"), user("Sure?")], 1, "an earlier answer of the assistant has <image>"),
    ],
)
def test_images_and_places_that_differ_in_number_are_refused(messages, n_images, message):
    with pytest.raises(ValueError, match=message):
        place_images(messages, n_images)


@COLLATORS
def test_an_image_in_a_later_turn_is_trained_on_there(processor, collator):
    prompt = [user("Hello."), said("Hi."), user("<image>\nWhat?")]
    made = collator(processor)
    texts = read(made, made([row(prompt=prompt, images=[picture()])]))
    assert all("user\nHello.<|im_end|>" in one and "<|image_pad|><|vision_end|>What?<|im_end|>" in one for one in texts)


# ---- Images in all their forms


@COLLATORS
def test_one_image_alone_is_a_list_of_one(processor, collator, tmp_path):
    picture().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    listed = collator(processor)([row(images=[picture()])])
    for alone in (picture(), str(tmp_path / "a.png"), tmp_path / "a.png", data, {"bytes": data, "path": None}):
        made = collator(processor)([row(images=alone)])
        assert made.keys() == listed.keys()
        assert all(torch.equal(made[key], listed[key]) for key in made if isinstance(made[key], torch.Tensor))
    for images in (7, {"a"}, iter([picture()])):
        with pytest.raises(ValueError, match="row r9: `images` is .*, and an image or a list of images is needed"):
            collator(processor)([row(images=images)])
    with pytest.raises(ValueError, match="row r9: a.jpg could not be decoded"):
        collator(processor)([row(images="a.jpg")])


def test_the_scorer_takes_images_for_each_completion(reward_model, processor, tmp_path):
    picture().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    scorer = RewardScorer(reward_model, processor)
    listed = scorer(["What?"], ["A cat."], [[picture()]])
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for flat in ([picture()], [data], [str(tmp_path / "a.png")], [url]):
        assert scorer(["What?"], ["A cat."], flat) == listed
    for link in (url, {"url": url}, {"url": url, "detail": "auto"}, {"url": str(tmp_path / "a.png")}):
        assert scorer([linked("image_url", link)], ["A cat."]) == listed
    with pytest.raises(ValueError, match="completion 0: a.jpg could not be decoded"):
        scorer(["What?"], ["A cat."], ["a.jpg"])
    with pytest.raises(ValueError, match="'images': 2} were given. Each completion needs one prompt, and one list"):
        scorer(["What?"], ["A cat."], [picture(), picture()])
    scores = scorer(["What?"] * 3, ["A cat."] * 3, [None, [], ()])
    assert scores == pytest.approx(scorer(["What?"], ["A cat."]) * 3, abs=5e-6)


def test_the_collator_takes_one_image_as_trl_does(processor):
    made = DataCollatorForVisionReward(processor)
    one = {key: value for key, value in row(image=picture()).items() if key != "images"}
    assert torch.equal(made([one])["input_ids"], made([row(images=[picture()])])["input_ids"])


# ---- Scores that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_the_scorer(reward_model, processor, value):
    reward_model.score.weight.data[0, 0] = value
    scorer = RewardScorer(reward_model, processor)
    with pytest.raises(ValueError, match=r"completion \d of row (a|b): its score is (nan|-?inf)"):
        scorer(["What?"] * 2, ["A cat.", "A dog."], id=["a", "b"])
    with pytest.raises(ValueError, match="response 1 of row r9: its score is"):
        scorer.score_candidates([{"id": "r9", "prompt": "What?", "images": [], "responses": ["", "A cat."]}])


@pytest.mark.parametrize("responses", ["A cat.", [None], ["A cat.", 7], None])
def test_responses_that_are_no_strings_are_refused(reward_model, processor, responses):
    rows = [{"id": "r9", "prompt": "What?", "images": [], "responses": responses}]
    with pytest.raises(ValueError, match="row r9: `responses` is .*, not a list of strings"):
        RewardScorer(reward_model, processor).score_candidates(rows)


@pytest.mark.parametrize("margin", [None, float("nan"), "much"])
def test_margins_that_are_no_numbers_are_refused(processor, margin):
    with pytest.raises(ValueError, match="row r9: "):
        DataCollatorForVisionReward(processor)([row(id="good", margin=1.0), row(margin=margin)])


def test_split_turns_reads_a_prompt_of_none():
    assert split_turns(None, [user("Q"), said("A")]) == ([user("Q")], [said("A")])
