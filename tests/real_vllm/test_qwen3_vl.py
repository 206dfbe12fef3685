"""Videos of Qwen3-VL in vLLM's offline engine. Their times stand in the text, and vLLM reads them from the metadata."""

import pytest
from servers import CHECKPOINTS, ENGINE
from test_sampling import GREEDY, compare_log_probs, video_rows
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from vl_reward import ResponseSampler
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.inference.vllm_sampler import VLLMSampler


pytestmark = pytest.mark.vllm
POLICY = CHECKPOINTS / "qwen3_vl/policy"


@pytest.fixture(scope="module")
def model():
    return Qwen3VLForConditionalGeneration.from_pretrained(POLICY, dtype="float32").eval()


@pytest.fixture(scope="module")
def engine():
    processor = AutoProcessor.from_pretrained(POLICY)
    return VLLMSampler(str(POLICY), processor, GREEDY, dtype="float32", engine_kwargs=ENGINE).llm


@pytest.mark.parametrize("limits", [{"fps": 2.0, "max_frames": 64}, {"fps": 1.1, "max_frames": 4}])
def test_videos_are_seen_as_transformers_sees_them(engine, model, tmp_path, monkeypatch, limits):
    """The tokens of every prompt, the log-probability of each, and greedy responses: of long videos, too."""
    processor = AutoProcessor.from_pretrained(POLICY)
    FrameLimits.keep(processor, **limits)
    prompts, images, videos = video_rows(tmp_path)
    assert max(compare_log_probs(engine, model, processor, prompts, images, videos)) < 1e-3

    monkeypatch.setattr("vllm.LLM", lambda **arguments: engine)
    sampler = VLLMSampler("unused", processor, GREEDY, dtype="float32")
    sampled = sampler(prompts, images, videos=videos)
    assert sampled == ResponseSampler(model, processor, GREEDY)(prompts, images, videos=videos)
    assert all(map(all, sampled))
