"""The languages that lrpo knows: the 176 that fastText's lid.176 tells apart, under the codes of its labels.

A language is given by that code, by any ISO 639-1 or 639-3 code, as a BCP 47 tag (``pt-BR``, ``zh-Hant``), or by its
English or its own name. Tags and names come from langcodes and the Unicode CLDR; region and script are dropped, because
lid.176 does not tell them apart. A variety that ISO 639-3 has a code for (``quy``, Ayacucho Quechua) is the language
that it is a variety of.

Further languages are declared: ``run.other_languages`` of a configuration, by :func:`declare`, for the whole process.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import NamedTuple

# By code the English name in lower case, as data rows spell it.
_TABLE: dict[str, str] = {
    "ar": "arabic", "de": "german", "en": "english", "es": "spanish", "fr": "french", "hi": "hindi",
    "id": "indonesian", "it": "italian", "ja": "japanese", "ko": "korean", "nl": "dutch", "pl": "polish",
    "pt": "portuguese", "ru": "russian", "th": "thai", "tr": "turkish", "vi": "vietnamese", "zh": "chinese",
    "bn": "bengali", "sw": "swahili", "te": "telugu",
    # The languages above keep their order, on which random draws of earlier runs depend.
    "af": "afrikaans", "als": "swiss german", "am": "amharic", "an": "aragonese", "arz": "egyptian arabic",
    "as": "assamese", "ast": "asturian", "av": "avaric", "az": "azerbaijani", "azb": "south azerbaijani",
    "ba": "bashkir", "bar": "bavarian", "bcl": "central bikol", "be": "belarusian", "bg": "bulgarian",
    "bh": "bhojpuri", "bo": "tibetan", "bpy": "bishnupriya", "br": "breton", "bs": "bosnian", "bxr": "buriat",
    "ca": "catalan", "cbk": "chavacano", "ce": "chechen", "ceb": "cebuano", "ckb": "central kurdish",
    "co": "corsican", "cs": "czech", "cv": "chuvash", "cy": "welsh", "da": "danish", "diq": "zaza",
    "dsb": "lower sorbian", "dty": "dotyali", "dv": "divehi", "el": "greek", "eml": "emiliano-romagnolo",
    "eo": "esperanto", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "frr": "northern frisian", "fy": "western frisian", "ga": "irish", "gd": "scottish gaelic", "gl": "galician",
    "gn": "guarani", "gom": "goan konkani", "gu": "gujarati", "gv": "manx", "he": "hebrew", "hif": "fiji hindi",
    "hr": "croatian", "hsb": "upper sorbian", "ht": "haitian creole", "hu": "hungarian", "hy": "armenian",
    "ia": "interlingua", "ie": "interlingue", "ilo": "iloko", "io": "ido", "is": "icelandic", "jbo": "lojban",
    "jv": "javanese", "ka": "georgian", "kk": "kazakh", "km": "khmer", "kn": "kannada", "krc": "karachay-balkar",
    "ku": "kurdish", "kv": "komi", "kw": "cornish", "ky": "kyrgyz", "la": "latin", "lb": "luxembourgish",
    "lez": "lezghian", "li": "limburgish", "lmo": "lombard", "lo": "lao", "lrc": "northern luri",
    "lt": "lithuanian", "lv": "latvian", "mai": "maithili", "mg": "malagasy", "mhr": "eastern mari",
    "min": "minangkabau", "mk": "macedonian", "ml": "malayalam", "mn": "mongolian", "mr": "marathi",
    "mrj": "western mari", "ms": "malay", "mt": "maltese", "mwl": "mirandese", "my": "burmese", "myv": "erzya",
    "mzn": "mazanderani", "nah": "nahuatl", "nap": "neapolitan", "nds": "low german", "ne": "nepali",
    "new": "newari", "nn": "norwegian nynorsk", "no": "norwegian", "oc": "occitan", "or": "odia", "os": "ossetic",
    "pa": "punjabi", "pam": "pampanga", "pfl": "palatine german", "pms": "piedmontese",
    "pnb": "western panjabi", "ps": "pashto", "qu": "quechua", "rm": "romansh", "ro": "romanian", "rue": "rusyn",
    "sa": "sanskrit", "sah": "yakut", "sc": "sardinian", "scn": "sicilian", "sco": "scots", "sd": "sindhi",
    "sh": "serbo-croatian", "si": "sinhala", "sk": "slovak", "sl": "slovenian", "so": "somali", "sq": "albanian",
    "sr": "serbian", "su": "sundanese", "sv": "swedish", "ta": "tamil", "tg": "tajik", "tk": "turkmen",
    "tl": "tagalog", "tt": "tatar", "tyv": "tuvinian", "ug": "uyghur", "uk": "ukrainian", "ur": "urdu",
    "uz": "uzbek", "vec": "venetian", "vep": "veps", "vls": "west flemish", "vo": "volapük", "wa": "walloon",
    "war": "waray", "wuu": "wu chinese", "xal": "kalmyk", "xmf": "mingrelian", "yi": "yiddish", "yo": "yoruba",
    "yue": "cantonese",
}  # fmt: skip
POLICY_CHOOSES = ""  # stands in the place of a requested language where the policy chooses the language itself
CODES: tuple[str, ...] = tuple(_TABLE)

_CODE_BY_NAME = {english: code for code, english in _TABLE.items()}
# lid.176 labels some languages with codes that are not, or no longer, those of the standards.
_LABEL_BY_STANDARD = {
    "nb": "no", "fil": "tl", "gsw": "als", "bho": "bh", "bih": "bh", "egl": "eml", "rgn": "eml", "bua": "bxr",
    "chm": "mhr", "zza": "diq", "kok": "gom", "knn": "gom", "lah": "pnb", "hbs": "sh", "nci": "nah", "cmn": "zh",
    "bik": "bcl",
}  # fmt: skip
# Members of ISO 639-3's macrolanguages that go by the name of the whole, by its label. Left out are those that lid.176
# tells apart, creoles, and those with a name and a literature of their own, as Banjar, Latgalian or Hakka, or that are
# written in a script in which lid.176 has not seen the language, as Southern Kurdish.
_VARIETIES = {
    "ar": "aao abh abv acm acq acw acx acy adf aeb aec afb ajp apc apd arq ars ary auz avl ayh ayl ayn ayp shu ssh",
    "sq": "aae aat aln",
    "gn": "gnw gui gun nhd",
    "kv": "koi",
    "mg": "bhr bjq bmm bzc msh skg tdx tkg txy xmv xmw",
    "mn": "mvf",
    "ms": "btj bve bvu coa jax max meo mfa mqg msi pse vkt zlm zmi",
    "ps": "pbt pst",
    "qu": "cqu qub qud quf qug quh quk qul qup qur qus quw qux quy qva qvc qve qvh qvi qvj qvl qvm qvn qvo qvp qvs qvw "
          "qvz qwa qwc qwh qws qxa qxc qxh qxl qxn qxo qxp qxr qxt qxu qxw",
    "sc": "sdc sdn sro",
    "uz": "uzs",
    "yi": "yih",
}  # fmt: skip
_LABEL_BY_VARIETY = {code: label for label, codes in _VARIETIES.items() for code in codes.split()}
# Names in use that CLDR does not have.
_OTHER_NAMES = {
    "alemannic": "als", "bangla": "bn", "bihari": "bh", "buryat": "bxr", "byelorussian": "be", "castilian": "es",
    "chinese simplified": "zh", "chinese traditional": "zh", "chinese mandarin": "zh", "farsi": "fa",
    "filipino": "tl", "flemish": "nl", "frisian": "fy", "gaelic": "gd", "haitian": "ht", "kirghiz": "ky",
    "konkani": "gom", "kurmanji": "ku", "mandarin": "zh", "mandarin chinese": "zh", "mari": "mhr",
    "moldovan": "ro", "myanmar": "my", "bokmal": "no", "nynorsk": "nn", "oriya": "or", "ossetian": "os",
    "panjabi": "pa", "pushto": "ps", "sinhalese": "si", "slovene": "sl", "sorani": "ckb", "tuvan": "tyv",
    "uighur": "ug", "valencian": "ca", "हिंदी": "hi",
}  # fmt: skip
# The names of languages in themselves where CLDR has none.
_OWN_NAMES = {"als": "Alemannisch", "bh": "भोजपुरी", "eml": "emigliân-rumagnôl", "arz": "اللهجة المصرية",
              "azb": "تۆرکجه", "pnb": "پنجابی", "wuu": "吴语", "tl": "Tagalog"}  # fmt: skip
_TAG = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{1,8})*", re.IGNORECASE)
_LABEL = re.compile(r"[a-z]{2,8}")  # of a declared language: it becomes a part of tags, headers and names of metrics

_NORWEGIAN = {"no", "nn"}  # written standards of one language, which lid.176 confuses in short texts


class _Declared(NamedTuple):
    """Languages that were declared."""

    names: Mapping[str, str] = MappingProxyType({})  # in English by label, as they were given
    by_name: Mapping[str, str] = MappingProxyType({})  # labels by simplified name
    by_standard: Mapping[str, str] = MappingProxyType({})  # labels by the standards' code
    newest: Mapping[str, str] = MappingProxyType({})  # of the names those that were given last


_NOTHING = _Declared()
_declared = _NOTHING  # what was declared in this process


@lru_cache(maxsize=4096)
def code_of(name: str) -> str:
    """The code of a language that is given by code, BCP 47 tag, or English or own name, in any letter case.

    Example:
        >>> code_of("Chinese"), code_of("zh-Hant"), code_of("zho"), code_of("中文"), code_of("nb")
        ('zh', 'zh', 'zh', 'zh', 'no')

    Raises:
        ValueError: the language is unknown. An unknown language never silently becomes English.
    """
    code = _resolve(name.strip(), _declared)
    if code is not None and (code in _TABLE or code in _declared.names):
        return code
    raise ValueError(f"unknown language {name!r}; {_hint(name.strip(), code)}")


def declare(languages: Mapping[str, str]) -> None:
    """Makes further languages known to this process, besides those that lid.176 tells apart.

    From then on they are given as any other: by label, by the codes and tags that the standards have for it, by this
    name, and by the names that CLDR has. What another configuration declared before stays where a label, a code or a
    name does not mean another language by this one.

    Args:
        languages: by label, as "tir" (2 to 8 small letters; where it is a standard's code, of that language), the
            English name, as "Tigrinya". A language model of one's own may know the label.

    Raises:
        ValueError: a label has another form or is known already, or a name is that of another language. Nothing was
            declared.
    """
    global _declared
    if languages.items() <= _declared.newest.items():
        return
    new = _checked(languages)
    # Of two configurations that are read in one process the newest is understood as it would be in one of its own.
    kept = {label: name for label, name in _declared.names.items() if _resolve(label, new) not in new.names}
    by_name = {_simplify(name): label for label, name in kept.items() if _resolve(name, new) not in new.names}
    by_standard = {standard: label for standard, label in _declared.by_standard.items() if label in kept}
    _declared = _Declared(
        kept | dict(languages), {**by_name, **new.by_name}, {**by_standard, **new.by_standard}, dict(languages)
    )
    code_of.cache_clear()
    native_name.cache_clear()


def _checked(languages: Mapping[str, str]) -> _Declared:
    """Languages as they are declared, each of which is told apart from the others and from all that were known before.

    Raises:
        ValueError: as :func:`declare`.
    """
    by_name, by_standard = dict[str, str](), dict[str, str]()
    for label in languages:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"the label {label!r} must be 2 to 8 letters from a to z, as the code tir of ISO 639-3")
        known = _resolve(label, _NOTHING)
        # A variety may be a language by itself.
        if known is not None and known in _TABLE and label not in _LABEL_BY_VARIETY:
            raise ValueError(
                f"{label!r} is {_TABLE[known].title()}, which is known as {known!r}: leave it out, or choose "
                "another label"
            )
        if (same := by_standard.setdefault(_plain_code(label), label)) != label:
            raise ValueError(f"{label!r} and {same!r} are one language: declare one of them")
    without_names = _Declared(languages, {}, by_standard)
    for label, name in languages.items():
        key = _simplify(name)
        if not key or not name.isprintable():
            raise ValueError(f"{label} = {name!r} is no name: give the English one, on one line")
        other = _resolve(name.strip(), without_names)
        if other not in _TABLE and other not in languages:  # one that nobody knows, or that lid.176 lacks as well
            other = by_name.setdefault(key, label)
        if other != label:
            # The code of another language: as a name it would be read as that one, in data rows and calibrations.
            better = f', as "{name.strip()} language"' if key == _simplify(_name_in_cldr(label)) else ""
            raise ValueError(
                f"{label} = {name!r} is the name or code of another language, {other!r}: give one that tells them "
                f"apart{better}"
            )
        by_name[key] = label
    return _Declared(dict(languages), by_name, by_standard)


def declared() -> dict[str, str]:
    """What this process was told by :func:`declare`: English names as they were given, by label."""
    return dict(_declared.names)


def english_name(code: str) -> str:
    """The English name of a language in lower case, as ``extra_info.language`` of a data row has it."""
    code = code_of(code)
    return _TABLE.get(code) or _declared.names[code].strip().lower()


def display_name(code: str) -> str:
    """The English name of a language as prompts and messages have it, as "Swiss German"; a declared one as given."""
    code = code_of(code)
    return _TABLE[code].title() if code in _TABLE else _declared.names[code].strip()


@cache
def native_name(code: str) -> str:
    """The name of a language in the language itself; where none is known, its English name."""
    from langcodes import Language

    code = code_of(code)
    standard = standard_code(code)
    language = Language.make(standard)
    own = _OWN_NAMES.get(code) or (language.autonym() if _TAG.fullmatch(standard) else "")
    # Of a language without a name in CLDR langcodes gives the code, "Unknown language [..]", or the English name.
    unnamed = not own or "[" in own or own == standard or (code not in _TABLE and own == language.display_name())
    return display_name(code) if unnamed else own


def is_variety(name: str) -> bool:
    """Whether a name that :func:`code_of` knows is that of a variety, which counts as the language that it is one of.

    As "Moroccan Arabic", unless that is declared.
    """
    varieties = _Declared({code: "" for code in _LABEL_BY_VARIETY}, {}, {code: code for code in _LABEL_BY_VARIETY})
    found = _resolve(name.strip(), varieties)
    return found in _LABEL_BY_VARIETY and code_of(name) == _LABEL_BY_VARIETY[found]


def tag(code: str) -> str:
    """The token that asks a warm-started policy to answer in a language, for example ``<|out_lang_zh|>``."""
    return f"<|out_lang_{code_of(code)}|>"


def count_as_one(first: str, second: str) -> bool:
    """Whether two codes mean the same language: they are equal, or both are Norwegian.

    This is about codes. Whether a text counts as being in a language, which it also may where it is in one that is
    near, as Malay for Indonesian (``reward.near_languages``), is for the language gate to tell (``reward/gate.py``).
    """
    return first == second or {first, second} == _NORWEGIAN


def _simplify(name: str) -> str:
    """What names have in common that differ in letter case, Latin and Greek accents, punctuation or space."""
    folded = unicodedata.normalize("NFC", name).casefold()
    letters = (
        unicodedata.normalize("NFD", c)[0] if unicodedata.name(c, "").startswith(("LATIN", "GREEK")) else c
        for c in folded
    )
    return " ".join(re.sub(r"[(),;_’'\u2018]", " ", "".join(letters)).split())


def _resolve(name: str, declared: _Declared) -> str | None:
    """The code of a language, or what stands for it in the standards where it is not known; None: it is no language.

    Args:
        declared: what is known besides the languages of lid.176.
    """
    key = _simplify(name)
    if key in _TABLE or key in declared.names:
        return key
    if code := _CODE_BY_NAME.get(key) or declared.by_name.get(key):
        return code
    return _code_of_tag(name, declared) or _code_of_name(key, declared) or _code_with_brackets(name, declared)


def _code_of_name(key: str, declared: _Declared) -> str | None:
    """As :func:`_resolve` for a simplified name, in English or in the language itself, which is no code."""
    if code := _CODE_BY_NAME.get(key) or declared.by_name.get(key) or _OTHER_NAMES.get(key):
        return code
    if code := next((code for code, name in _OWN_NAMES.items() if _simplify(name) == key), None):
        return code
    tag = _tags_by_name().get(key)
    return _code_of_tag(tag, declared) if tag else None


def _code_with_brackets(name: str, declared: _Declared) -> str | None:
    """As :func:`_resolve` for "Portuguese (Brazil)", "Arabic (Egyptian)", "Kurdish (Sorani)" or "Serbian (Latin)".

    What stands in brackets may be a part of the name or the name of the language itself, else a country or a script.
    """
    before, _, inside = map(_simplify, name.partition("("))
    if not before or not inside:
        return None
    if code := _code_of_name(f"{inside} {before}", declared):
        return code
    code, named = _code_of_name(before, declared), _code_of_name(inside, declared)
    # IN is a country rather than Indonesian, whose code it was.
    if code is None or named is None or len(inside) <= 3 or inside in (others := _other_names_of_cldr()):
        return code
    return code if named in {_tags_by_name().get(other) for other in others} else named


def _code_of_tag(name: str, declared: _Declared) -> str | None:
    """As :func:`_resolve` for a language tag; None: it is none."""
    if not _TAG.fullmatch(name):
        return None
    from langcodes import Language, standardize_tag, tag_is_valid
    from langcodes.tag_parser import LanguageTagError

    primary = re.split("[-_]", name.lower())[0]
    if primary in ("sh", "hbs"):  # the standards make them Serbian, which lid.176 tells apart
        return "sh"
    try:
        if not tag_is_valid(name):
            return None
        codes = [Language.get(standardize_tag(name, macro=macro)).language for macro in (False, True)]
    except LanguageTagError:
        return None
    known = [_label(code, declared) for code in codes if code]
    label = next(
        (one for one in known if one in declared.names or (one in _TABLE and not (one == "als" and "als" in codes))),
        None,
    )
    return label or (known[0] if known and known[0] != "und" else None)


def _label(standard: str, declared: _Declared) -> str:
    """The label of a language by the standards' code; that code where it has none."""
    label = declared.by_standard.get(standard)
    return label or _LABEL_BY_STANDARD.get(standard) or _LABEL_BY_VARIETY.get(standard, standard)


def _plain_code(label: str) -> str:
    """The code of the language that a label is of by the standards, or the label where they have none or another's.

    Unlike :func:`code_of` it does not take a variety for the whole: Moroccan Arabic may be declared by itself.
    """
    if label in _TABLE or not _TAG.fullmatch(label):
        return label
    from langcodes import Language, standardize_tag

    code = Language.get(standardize_tag(label)).language or label
    return _LABEL_BY_STANDARD.get(code, code)


def _name_in_cldr(label: str) -> str:
    """The English name that CLDR has for the language of a label; empty where it is of no language."""
    from langcodes import Language

    return Language.get(label).display_name() if _TAG.fullmatch(label) else ""


def standard_code(code: str) -> str:
    """The code that the standards have for the language of a label."""
    labels = _LABEL_BY_STANDARD | dict(_declared.by_standard)
    return next((standard for standard, label in labels.items() if label == code), code)


@cache
def _tags_by_name() -> dict[str, str]:
    """By simplified name, in English or in the language itself, the tag of every language that CLDR names."""
    from langcodes import Language
    from language_data.name_data import CODE_TO_NAMES

    found: dict[str, str] = {}
    for one, names in CODE_TO_NAMES.items():
        if _is_of_a_language(one) and _code_of_tag(one, _NOTHING):
            for spoken in ("en", one, Language.get(one).language):
                if spoken and spoken in names:
                    found.setdefault(_simplify(names[spoken]), one)
    return found


@cache
def _other_names_of_cldr() -> frozenset[str]:
    """The simplified English names of scripts and territories, some of which are also those of languages."""
    from language_data.name_data import CODE_TO_NAMES

    return frozenset(
        _simplify(names["en"]) for one, names in CODE_TO_NAMES.items() if "en" in names and not _is_of_a_language(one)
    )


def _is_of_a_language(code: str) -> bool:
    """Whether a code of CLDR is one of a language, not of a script, which has a capital letter, or a territory."""
    return bool(_TAG.fullmatch(code)) and code[:2].islower()


def near_names(name: str) -> list[str]:
    """Known names that one resembles which is of no language, best first: it may be one of them, misspelt."""
    if _resolve(name.strip(), _declared) is not None:
        return []
    key, known = _simplify(name), [*_CODE_BY_NAME, *_OTHER_NAMES, *_declared.by_name]
    return difflib.get_close_matches(key, known, n=3, cutoff=0.7) if len(key) > 3 else []


def _hint(name: str, code: str | None) -> str:
    if code is not None:
        english, label = _name_in_cldr(code), name if _LABEL.fullmatch(name) else code
        other = _resolve(english, _declared)
        if other in _TABLE or other in _declared.names:  # Mon is also the code of Mongolian
            english += " language"
        return (
            f"it is {english}, which is none of the {len(_TABLE)} languages that lid.176 tells apart: declare it with "
            f'run.other_languages = {{{label} = "{english}"}} (docs/languages.md)'
        )
    ways = (
        "give an ISO 639 code, a BCP 47 tag, or the English or own name, as in sv, swe, pt-BR, Swedish, svenska; one "
        "that has none of these is declared in run.other_languages (docs/languages.md)"
    )
    near = near_names(name)
    return f"did you mean {', '.join(map(repr, near))}?" if near else ways
