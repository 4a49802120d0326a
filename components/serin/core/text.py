"""Simple lexical measures of texts, the same in evaluation, at the endpoint and in monitoring.

They compare words and numbers, not meaning: cheap, repeatable, and blind to paraphrase.  English and French are known
by their articles, stop words and ways to refuse; other languages are compared word by word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "-", "—": "-", "‑": "-", "−": "-"}
)
"""For ``str.translate``: typographic quotes and dashes as typed ones, character for character."""
_SPACE = "[ \u00a0\u2009\u202f]"
_NUMBER = re.compile(rf"(?<!\d)[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?!\d)(?:,\d+(?!\d))?|\d+(?:[.,']\d+)*")
_TOKEN = re.compile(rf"(?<!\w)(?P<number>{_NUMBER.pattern})(?!\w)|[^\W_]+")

_ARTICLES = "a an the le la les l un une des"
_ENGLISH = (
    "about after all also am and any are as at be been but by can could did do does for from had has have he her "
    "here his how i if in into is it its just like may me might more my no not of off on or our out please she "
    "should so some such than thank thanks that their them then there these they this those to too up us very was "
    "we were what when where which who will with would yes you your s t m re ve ll d"
)
_FRENCH = (
    "ai au aux avec avez bonjour c ce cela ces cet cette chez comme dans de du elle elles en est et être eu il ils "
    "j je leur lui ma mais me merci mes moi mon ne non nos notre nous n on ont ou où oui par pas peut plus pour qu "
    "que qui sa sans se ses si son sont sur ta te tes toi ton tu va vos votre vous y à été"
)
ARTICLES = frozenset(_ARTICLES.split())
STOP_WORDS = ARTICLES | frozenset(_ENGLISH.split()) | frozenset(_FRENCH.split())

_CANNOT = r"(?:can(?:no|')t|can not|could(?:n't| not)|(?:am|are|'m|'re|was|were) (?:not able|unable) to)"
_TELL = r"(?:find|answer|say|tell|see|confirm|locate)"
_HELP = r"(?:help|assist|provide)"
_REFUSALS = re.compile(
    "|".join(
        (
            rf"\b(?:i|we) ?{_CANNOT}(?: \w+)? {_TELL}\b",
            rf"\bi ?{_CANNOT}(?: \w+)? {_HELP}\b",
            r"\b(?:i|we) (?:do not|don't) (?:know|have (?:\w+ ){0,2}information)\b",
            r"\b(?:passages?|documents?|information) (?:do|does)(?: not|n't) (?:say|mention|cover|contain|tell)\b",
            r"\b(?:no|not) (?:information|mentioned|stated)\b.{0,40}\b(?:passages?|documents?|available)\b",
            r"\bje ne (?:trouve|sais|peux|vois|suis)(?: \w+)? pas\b|\bje ne (?:trouve|sais|peux|vois|suis) pas\b",
            r"\bje n'ai (?:pas|aucune)(?: \w+){0,2} (?:information|informations|reponse|réponse|détails?)\b",
            r"\bje n'ai (?:pas|rien) trouvé\b|\baucune information\b",
            r"\bnous ne (?:trouvons|savons|pouvons)(?: \w+)? pas\b",
            r"\b(?:passages?|documents?) ne (?:dit|disent|précisent?|mentionnent?)\b",
        )
    )
)


def normalise(text: str) -> str:
    """Compatibility form (NFKC), folded case, plain quotes and dashes, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text.translate(PLAIN)).casefold().split())


def words(text: str) -> list[str]:
    """Words of any script, normalised and in order; a number is one word in the form that ``numbers`` gives it.

    Apostrophes and hyphens end a word ("l'article" is two).
    """
    found: list[str] = []
    for match in _TOKEN.finditer(normalise(text)):
        found += _values(match["number"]) if match["number"] else [match[0]]
    return found


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall, articles aside (0 to 1).

    The measure of SQuAD (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250), with French articles and with
    numbers compared by value.
    """
    given, wanted = _compared(answer), _compared(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def exact_match(answer: str, reference: str) -> bool:
    """Whether two texts hold the same words in the same order, articles and punctuation aside."""
    return _compared(answer) == _compared(reference)


def numbers(text: str) -> list[str]:
    """The numbers written in digits, in order, each in one form: '89,00 €' and 'EUR 89.00' both give '89'.

    A comma before exactly three digits groups thousands, any other single separator is decimal; spaces and
    apostrophes group thousands.  Signs, currencies and units are left out; dates give their parts.
    """
    return [value for match in _NUMBER.finditer(text.translate(PLAIN)) for value in _values(match[0])]


def support_score(answer: str, passages: Sequence[str]) -> float:
    """How far an answer is supported by its passages (0 to 1): ``serin.core.grounding``'s score.

    An empty answer, and one without passages, scores 0; one that claims nothing ("Yes.") scores 1.
    """
    from serin.core.grounding import ground

    return ground(answer, passages).support_score


def is_refusal(answer: str) -> bool:
    """Whether an answer says that it has none (English and French phrases); an empty answer is not a refusal."""
    return _REFUSALS.search(normalise(answer)) is not None


def _compared(text: str) -> list[str]:
    return [word for word in words(text) if word not in ARTICLES]


def _values(token: str) -> list[str]:
    """The value of a number token, or the values of its parts when it is no single number (a date, a list)."""
    compact = re.sub(_SPACE, "", token)
    decimal = _decimal_form(compact)
    parts = [decimal] if decimal else re.split(r"[.,']", compact)
    return [_canonical(part) for part in parts]


def _decimal_form(token: str) -> str | None:
    if token.isdecimal():
        return token
    if re.fullmatch(r"[1-9]\d{0,2}(?:[,']\d{3})+(?:\.\d+)?", token):  # 1,299 and 1,299.50 and 1'299
        return re.sub(r"[,']", "", token)
    if re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}", token):  # 1.299,50 and 1.299.000
        return token.replace(".", "").replace(",", ".")
    return token.replace(",", ".") if re.fullmatch(r"\d+[.,]\d+", token) else None


def _canonical(number: str) -> str:
    value = format(Decimal(number), "f")
    return value.rstrip("0").rstrip(".") if "." in value else value
