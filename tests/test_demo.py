"""The bundled demo, served as a user serves it: a process of its own, the real model, the wire."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.v1 import translation_pb2 as pb
from export.bundle import Bundle
from tests.served import DEMO, ROOT, Served

LARGEST_BUNDLE_BYTES = 12_000_000
LARGEST_IDLE_MEMORY_BYTES = 300_000_000


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers and ends those that a test leaves running."""
    started: list[Served] = []

    def start(*flags: str) -> Served:
        started.append(Served(*flags))
        return started[-1]

    yield start
    for served in started:
        served.channel.close()
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    served = Served("--lame-duck", "0")
    yield served
    assert served.stop() == 0


def mixed_sentences(count: int) -> list[str]:
    """Sentences of 1 to about 60 words, put together from the golden ones."""
    draw = random.Random(11)
    golden = [sentence.source for sentence in Bundle.open(DEMO).golden()]
    words = " ".join(golden).split()
    return [
        " ".join(draw.choices(words, k=draw.randint(1, 60))) if n % 3 else draw.choice(golden) for n in range(count)
    ]


def test_the_bundle_fits_its_limit_and_carries_a_passed_exam() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= LARGEST_BUNDLE_BYTES
    bundle = Bundle.open(DEMO)
    assert len(bundle.golden()) == 64
    (exam,) = bundle.certificate()
    assert exam.passed
    assert exam.manifest_sha256 == bundle.digest
    assert exam.token_exact_rate == 1.0
    assert "research and education" in bundle.manifest.license_note


def test_it_translates_golden_sentences_as_the_reference_does(demo: Served) -> None:
    golden = Bundle.open(DEMO).golden()
    translations = demo.translate(*[sentence.source for sentence in golden], beam_size=4)
    for sentence, translation in zip(golden, translations, strict=True):
        assert translation.score == pytest.approx(sentence.beam.score, abs=1e-4), sentence.source
        assert translation.output_token_count == len(sentence.beam.ids)


def test_the_readme_command_prints_german(demo: Served) -> None:
    command = [sys.executable, "-m", "server.cli", "translate", "--server", demo.address, "A man is riding a bicycle."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"Ein Mann fährt .*[Ff]ahrrad.*\.\n", done.stdout)


def test_it_is_ready_and_small_when_idle(serve: Callable[..., Served]) -> None:
    served = serve()
    health = health_pb2_grpc.HealthStub(served.channel)
    for service in ("", "readiness", "liveness", "dragoman.v1.TranslationService", "multi30k-en-de"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)  # type: ignore[attr-defined]
        assert reply.status == health_pb2.HealthCheckResponse.SERVING, service
    status = Path(f"/proc/{served.process.pid}/status").read_text(encoding="utf-8")
    (resident_kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    assert int(resident_kib) * 1024 < LARGEST_IDLE_MEMORY_BYTES


@pytest.mark.parametrize("beam_size", [1, 3])
def test_two_hundred_at_once_equal_one_at_a_time(demo: Served, beam_size: int) -> None:
    texts = mixed_sentences(200)
    alone = [demo.translate(text, beam_size=beam_size)[0].text for text in texts]
    steps, rows = (demo.metric(f"dragoman_step_rows_{part}") for part in ("count", "sum"))
    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(lambda text: demo.translate(text, beam_size=beam_size)[0].text, texts))
    assert together == alone
    steps, rows = (demo.metric("dragoman_step_rows_count") - steps, demo.metric("dragoman_step_rows_sum") - rows)
    assert rows / steps > 4 * beam_size, "the requests did not share steps"
    assert demo.metric("dragoman_active_sequences") == 0
    assert demo.metric("dragoman_queue_depth") == 0


def test_greedy_and_beam_requests_share_steps_without_changing_each_other(demo: Served) -> None:
    texts = mixed_sentences(40)
    beams = [1 + n % 4 for n in range(len(texts))]
    alone = [demo.translate(text, beam_size=beam)[0].text for text, beam in zip(texts, beams, strict=True)]
    with ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda text, beam: demo.translate(text, beam_size=beam)[0].text, texts, beams))
    assert together == alone


@pytest.mark.parametrize(
    "text",
    ["🚲🔥", "رجل يركب دراجة", "一个男人骑自行车", "x" * 400, "a\u0000b", "\u202eabc", "ﷺ" * 20, "word " * 200],
    ids=lambda text: ascii(text[:12]),
)
def test_strange_text_gets_a_translation_and_the_server_stays_well(demo: Served, text: str) -> None:
    well = demo.translate("A dog is running.")[0].text
    (translation,) = demo.translate(text)
    assert not translation.HasField("status")
    assert translation.finish_reason in (pb.FINISH_REASON_END_TOKEN, pb.FINISH_REASON_MAX_TOKENS)
    assert demo.translate("A dog is running.")[0].text == well


@pytest.mark.parametrize("text", ["", "  \n", " " * 10_000])
def test_blank_text_gives_an_empty_translation(demo: Served, text: str) -> None:
    (translation,) = demo.translate(text)
    assert (translation.text, translation.finish_reason) == ("", pb.FINISH_REASON_EMPTY_SOURCE)


def test_a_stream_joins_to_the_unary_text(demo: Served) -> None:
    texts = mixed_sentences(12)
    pieces = [""] * len(texts)
    whole: dict[int, str] = {}
    messages = 0
    for message in demo.stub.StreamTranslateText(pb.StreamTranslateTextRequest(contents=texts), timeout=60):
        messages += 1
        pieces[message.content_index] += message.text
        if message.HasField("translation"):
            whole[message.content_index] = message.translation.text
    assert pieces == [whole[index] for index in range(len(texts))]
    assert pieces == [translation.text for translation in demo.translate(*texts)]
    assert messages > 3 * len(texts)


def test_sigterm_under_load_answers_every_accepted_request(serve: Callable[..., Served]) -> None:
    served = serve("--lame-duck", "0.5", "--grace", "60")
    texts = mixed_sentences(120)

    def call(text: str) -> str:
        return served.translate(text, beam_size=4)[0].text

    with ThreadPoolExecutor(120) as pool:
        calls = [pool.submit(call, text) for text in texts]
        calls[0].result()  # the load is on: some are decoded, some wait
        served.process.send_signal(signal.SIGTERM)
        answers = [future.result() for future in calls]
    assert all(answers)
    served.process.communicate(timeout=60)
    assert served.process.returncode == 0


def test_a_flipped_byte_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(DEMO, broken)
    weights = broken / "graphs" / "ort-fp32" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    command = [sys.executable, "-m", "server.cli", "serve", "--models", str(broken)]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "weights.bin" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
