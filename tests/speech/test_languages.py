"""Other languages than English with the base model, and what an English model says when it is asked for them."""

from __future__ import annotations

import itertools

import jiwer
import pytest
from running_daemon import Launch, RunningDaemon
from speech_clips import Clip, clip, clips, needs_speech

from whisperd.client import Client, InvalidParams, UnsupportedLanguage

pytestmark = [pytest.mark.speech, needs_speech]

CLIPS = [each for each in clips("other_languages") if each.text and each.seconds < 20]
GERMAN = clip("other_languages/picovoice_test_de.wav")
# Characters that the base model may get wrong: it is small. Most clips have under 0.1, one word in Korean makes 0.21.
CHARACTERS_WRONG_MAX = 0.25
# Of five syllables one, and traditional signs for simplified ones, which is another way to write the same.
CHARACTERS_WRONG_MAX_BY_LANGUAGE = {"zh": 0.6}


@pytest.fixture(scope="module")
def daemon(launch_shared: Launch) -> RunningDaemon:
    """A daemon whose default is the multilingual base model."""
    return launch_shared("--model", "base")


def test_the_language_is_found_and_written(client: Client) -> None:
    """Every clip with a text, all at once and none with a hint: rows of one batch have languages of their own."""
    pending = [(each, client.submit(each.path)) for each in CLIPS]
    for each, reply in pending:
        result = reply.result()
        assert result.language == each.language, each.file
        assert 0.7 < (result.language_probability or 0) <= 1.0, each.file
        limit = CHARACTERS_WRONG_MAX_BY_LANGUAGE.get(each.language, CHARACTERS_WRONG_MAX)
        assert jiwer.cer(bare(each.text or ""), bare(result.text)) <= limit, f"{each.file}: {result.text}"
    assert len({each.language for each, _ in pending}) >= 8


def bare(text: str) -> str:
    """Without case, punctuation and space."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def test_detection_alone_says_how_likely_each_language_is(client: Client) -> None:
    """The likeliest first, all of them together certain; in English too."""
    for each in (GERMAN, clip("other_languages/picovoice_test_ja.wav"), clip("whisper_family/jfk.wav")):
        found = client.detect_language(each.path)
        assert found.language == each.language
        assert found.languages[0] == pytest.approx((each.language, found.probability), abs=1e-3)
        assert found.probability > 0.8
        probabilities = [probability for _, probability in found.languages]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1.0, abs=0.01)
        assert len(probabilities) == 99


def test_silence_has_no_language(client: Client) -> None:
    """Neither found alone nor beside a text."""
    silence = clip("silence/digital_zero_10s.wav")
    assert client.detect_language(silence.path).language is None
    assert client.transcribe(silence.path).language is None


def test_german_is_translated_into_english(client: Client) -> None:
    """Beside its transcription, in the same moment: rows of one batch have tasks of their own."""
    translated = client.submit(GERMAN.path, task="translate")
    transcribed = client.submit(GERMAN.path)
    assert (translated.result().task, transcribed.result().task) == ("translate", "transcribe")
    assert "portal" in translated.result().text.lower()
    assert " the " in f" {translated.result().text.lower()} "
    assert "Raum wurde" in transcribed.result().text
    assert translated.result().language == "de"


def test_a_language_that_is_given_is_believed(client: Client) -> None:
    """German taken for French comes out in French words."""
    result = client.transcribe(GERMAN.path, language="fr", temperature=0)
    assert (result.language, result.language_probability) == ("fr", None)
    assert result.text != client.transcribe(GERMAN.path, language="de", temperature=0).text


def test_long_audio_keeps_the_language_of_its_beginning(client: Client) -> None:
    """A minute of German is German in every window, with words in their places."""
    book: Clip = clip("other_languages/librivox_de.mp3")
    result = client.transcribe(book.path, timestamps="word", beam_size=1)
    assert (result.language, result.windows >= 3) == ("de", True)
    assert jiwer.cer(bare(book.text or ""), bare(result.text)) < CHARACTERS_WRONG_MAX
    words = [word for segment in result.segments for word in segment.words or ()]
    assert all(first.end <= second.start for first, second in itertools.pairwise(words))


def test_a_language_that_no_model_knows_is_refused(client: Client) -> None:
    """The words are well-formed, the language is not there."""
    with pytest.raises(UnsupportedLanguage) as caught:
        client.transcribe(GERMAN.path, language="xx")
    assert not caught.value.retryable


def test_an_english_model_refuses_other_languages(client: Client) -> None:
    """It would write nonsense instead; no language at all is English, and detection knows no other."""
    with pytest.raises(UnsupportedLanguage, match=r"tiny\.en"):
        client.transcribe(GERMAN.path, model="tiny.en", language="de")
    with pytest.raises(InvalidParams, match="translate") as caught:
        client.transcribe(GERMAN.path, model="tiny.en", task="translate")
    assert caught.value.pointer == "/task"
    english = clip("whisper_family/jfk.wav")
    assert "country" in client.transcribe(english.path, model="tiny.en", language="en").text
    assert client.call("detect_language", audio={"path": str(english.path)}, model="tiny.en")["language"] == "en"
