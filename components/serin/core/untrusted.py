"""Making text that somebody else wrote harmless inside a prompt.

A chat template joins turns with control tokens, and a tokenizer takes the same characters inside a passage for the
same tokens: a document that holds ``<|im_end|>`` could end the system turn and begin one of its own.  So the marks
that templates use are broken by a space, which no tokenizer takes for the mark; nothing is removed, and text without
such marks stays as it is, byte for byte.  Invisible characters that carry text past a reader (Unicode tags, direction
overrides, zero-width spaces, control characters) are removed.
"""

import re

_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")

# Marks are broken after their first character, so that what is left of one never makes another.
_TOKEN = re.compile(
    r"<(?=[|｜]{1,2}[^<>|｜]{1,64}(?:[|｜]{1,2})?>)"  # <|im_start|>, <|eot_id|>, <|end>, <｜User｜>
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|sep|cls|eod|im_start|im_end|begin_of_text|end_of_text)>)"
    r"|<(?=(?:start|end)_of_(?:turn|utterance|role|image|audio)>|/?tool_(?:calls?|responses?|outputs?)>|fim_[a-z]{2,9}>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\]"
    r"|(?:BOS|EOS|PAD|UNK|CLS|SEP|MASK|gMASK|sMASK)\])"
)
_TURN = re.compile(
    r"<(?=/?(?:system|user|assistant|human|think)>)"
    r"|#(?=#{1,3} ?(?:System|User|Human|Assistant|Instruction|Input|Response) ?:)"
    r"|\b(?:USER|ASSISTANT|HUMAN)(?=:)"  # Vicuna's turns stand in one line
)


def visible(text: str) -> str:
    """The text without characters that nobody sees; line breaks and tabs stay."""
    return _INVISIBLE.sub("", text)


def without_tokens(text: str) -> str:
    """The text with every control token of a chat template broken: for what a client sends as a turn."""
    return _TOKEN.sub(_broken, text) if "<" in text or "[" in text else text


def one_line(text: str) -> str:
    """A passage as one line that holds no control token and no mark of a turn; doing it twice changes nothing."""
    return _TURN.sub(_broken, without_tokens(" ".join(visible(text).split())))


def inside(text: str, fence: str) -> str:
    """The text so that it does not hold what opens or closes its fence.

    Args:
        text: one line.
        fence: what stands before or after it in the prompt; one character or a word is no fence.
    """
    mark = fence.strip()
    if len(mark) < 2 or mark.isalnum():
        return text
    if name := re.fullmatch(r"</?([A-Za-z][\w.-]*)[^<>]*>", mark):
        return re.sub(rf"<(?=\s*/?\s*{re.escape(name[1])}\b)", "< ", text, flags=re.IGNORECASE)
    spread = " ".join(mark)
    while mark in text:
        text = text.replace(mark, spread)
    before, after = text.startswith(mark[-1]), text.endswith(mark[0])  # what touches the fence must not lengthen it
    return f"{' ' * before}{text}{' ' * after}"


def _broken(match: "re.Match[str]") -> str:
    return f"{match[0]} "
