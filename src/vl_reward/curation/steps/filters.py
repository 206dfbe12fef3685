"""Rules that look at one pair alone."""


def ties(
    chosen_keys: list[int],
    rejected_keys: list[int],
    rating_margins: list[float | None],
    min_rating_margin: float | None,
) -> dict[int, str]:
    """
    Pairs whose responses are equal, and those that the set itself rated nearly alike.

    Args:
        chosen_keys (`list[int]`), rejected_keys (`list[int]`):
            Hashes of the normalised responses.
        rating_margins (`list[float]`):
            Difference of the set's own labels as a fraction of their scale, `None` where it gives none.
        min_rating_margin (`float`, *optional*):
            Least margin to keep. `None` keeps all.

    Returns:
        `dict[int, str]`: the reason for each pair to drop.
    """
    reasons = {}
    for i, (chosen, rejected, margin) in enumerate(zip(chosen_keys, rejected_keys, rating_margins, strict=True)):
        if chosen == rejected:
            reasons[i] = "both responses are equal"
        elif min_rating_margin is not None and margin is not None and margin < min_rating_margin:
            reasons[i] = "near-tie: the set's ratings differ by less than min_rating_margin"
    return reasons


def outside_limits(
    n_tokens: list[int | None], n_characters: list[list[int]], max_tokens: int | None, max_characters: int | None
) -> dict[int, str]:
    """
    Pairs over a limit. Nothing is cut: the end of an answer is what is scored.

    Args:
        n_tokens (`list[int]`):
            Tokens of the longer conversation, visual tokens included; `None` where no processor counted them.
        n_characters (`list[list[int]]`):
            Characters of both responses.
        max_tokens (`int`, *optional*), max_characters (`int`, *optional*):
            The limits.

    Returns:
        `dict[int, str]`: the reason for each pair to drop.
    """
    reasons = {}
    for i, (tokens, characters) in enumerate(zip(n_tokens, n_characters, strict=True)):
        if max_tokens is not None and tokens is not None and tokens > max_tokens:
            reasons[i] = "more tokens than max_tokens"
        elif max_characters is not None and max(characters) > max_characters:
            reasons[i] = "a response with more characters than max_characters"
    return reasons


def low_confidence(
    scores: list[tuple[float | None, float | None]], min_chosen_score: float | None, min_score_margin: float | None
) -> dict[int, str]:
    """
    Pairs that a surrogate reward model has little confidence in (Skywork-VL Reward, section 3.2, stage 2: the paper
    gives no thresholds).

    Args:
        scores (`list[tuple[float, float]]`):
            Scores of chosen and rejected response, `None` for what was not scored.
        min_chosen_score (`float`, *optional*):
            Least score of the chosen response.
        min_score_margin (`float`, *optional*):
            Least score of the chosen response above the rejected one.

    Returns:
        `dict[int, str]`: the reason for each pair to drop.
    """
    reasons = {}
    for i, (chosen, rejected) in enumerate(scores):
        if chosen is None or rejected is None:
            reasons[i] = "the surrogate has not scored it"
        elif min_chosen_score is not None and chosen < min_chosen_score:
            reasons[i] = "the surrogate scores the chosen response below min_chosen_score"
        elif min_score_margin is not None and chosen - rejected < min_score_margin:
            reasons[i] = "the surrogate's scores differ by less than min_score_margin"
    return reasons
