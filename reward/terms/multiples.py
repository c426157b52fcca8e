r"""Words that multiply the number beside them, as in 5 thousand, 5万 and elfu 5: with them it is another number.

The words are those of the compact decimal formats of CLDR (as babel has them), in the spellings and cases that texts
have beside them, with hundreds and dozens. Left out is what is also a unit or another word behind a number: one or two
Latin letters (5 M, 5 mi), min, miles, Indonesian bln (months), Turkish yüz (faces of a solid), Greek χιλ.
(millimetres), Tamil and Telugu abbreviations (of millimetres, too).
"""

from __future__ import annotations

import re

_LONGEST = 60  # characters that are read beside a number
_NUKTA = "\u093c"  # a dot that Hindi texts leave out as often as not: हज़ार, हजार
_PERSIAN = str.maketrans("يىك", "ییک")

# Languages in Latin, Greek, Cyrillic, Armenian and Georgian letters, by the beginnings of the words and their endings.
_CASED = (
    r"hundreds?|thousands?|millions?|billions?|trillions?|dozens?|factorial|squared|cubed",  # English
    r"hundert(?:e|en)?|tausende?n?|million(?:en)?|milliarden?|billion(?:en)?|billiarden?|trillion(?:en)?|dutzend|mio|mrd",
    r"mil|mill[oó]n(?:es)?|bill[oó]n(?:es)?|trill[oó]n(?:es)?|cien(?:tos)?|millar(?:es)?|docenas?",  # Spanish
    r"mille|milliers?|milliards?|centaines?|douzaines?",  # French
    r"milh(?:ão|ões)|bil(?:h|i)(?:ão|ões)|tril(?:h|i)(?:ão|ões)|milhar(?:es)?|dúzias?",  # Portuguese
    r"mila|milion[ei]|miliard[oi]|bilion[ei]|migliaia|dozzin[ae]|mln|mld|mlrd",  # Italian
    r"duizend|honderd|miljoen(?:en)?|miljard(?:en)?|biljoen(?:en)?|dozijn",  # Dutch
    r"tusen|tusental|hundra|miljon(?:er)?|miljard(?:er)?|biljon(?:er)?|dussin",  # Swedish
    r"tusind|hundrede|million(?:er|ar)|milliard(?:er|ar)|billion(?:er|ar)|milliarder|mia",  # Danish, Norwegian
    r"tuhat(?:ta)?|sataa?|miljoona[at]?|miljardia?|biljoonaa?|milj|bilj",  # Finnish
    r"tysiąc[ae]?|tysięcy|tys|milion(?:a|y|ów)?|miliard(?:a|y|ów)?|bilion(?:a|y|ów)?|tuzin(?:y|ów)?",  # Polish
    r"tisíc[aeůí]?|milion[uůy]?|milión(?:a|y|ov)?|miliard[ay]?|miliárd[ay]?|bilion[uůy]?|bilión(?:a|y|ov)?|tis",
    r"ezer|száz|millió|milliárd|billió",  # Hungarian
    r"(?:de )?(?:mii|mie|milioane|miliarde|trilioane)|milion|miliard",  # Romanian
    r"tisuć[aeu]|hiljad[aeu]|milijun[ai]?|milion[ai]?|milijon[aieov]*|milijard[aei]?|bilijun[ai]?|bilijon[aieov]*|mlr|tisoč",
    r"bin|milyon|milyar|trilyon|düzine",  # Turkish
    r"ribu|ratus|juta|miliar|triliun|bilion|trilion|lusin",  # Indonesian, Malay
    r"nghìn|ngàn|trăm|triệu|t[ỷỉ]|chục",  # Vietnamese
    r"elfu|milioni|bilioni|trilioni",  # Swahili
    r"milers?|milions?|milió|bilions?|bilió|libo|milyong?|bilyong?|trln|duisend|þúsund|mijë|hezar",
    r"тысяч(?:а|и|ей|ам|у)?|тыс|миллион(?:а|ов|у|ы)?|миллиард(?:а|ов|у|ы)?|триллион(?:а|ов|у|ы)?",  # Russian
    r"млн|млрд|трлн|сотен|сотни|дюжин[аы]?",
    r"тисяч[аі]?|тис|мільйон(?:а|и|ів)?|мільярд(?:а|и|ів)?|трильйон(?:а|и|ів)?|сотень",  # Ukrainian
    r"тысячы|мільён(?:а|аў|ы)?|мільярд(?:аў|ы)|хиляд[аи]|хил|трилиона?|билион[аи]?|илј|милј|милион[аи]?|милиард[аи]?|хиљад[ае]|хиљ|милијард[аеи]|илјад[аи]",
    r"мың|мең|миң|мянга|сая|ҳазор",  # Kazakh, Tatar, Kyrgyz, Mongolian, Tajik
    r"χιλιάδ(?:α|ες|ων)|εκατομμύρι[αο]|εκατομμυρίων|δισεκατομμύρι[αο]|τρισεκατομμύρι[αο]|εκατ|δισ|τρισ|ντουζίν[αε]ς?",
    r"հազար|միլիոն|միլիարդ|տրիլիոն|մլն|մլրդ|տրլն|հզր|ათასი|მილიონი|მილიარდი|ტრილიონი|მლნ|მლრდ?|ტრლ",
)  # fmt: skip
# Those of scripts without capitals: words with their endings, where there are spaces, and without.
_ARABIC = (
    r"[أا]لف[اای]?|[آا]لاف|مئات|مئة|مائة|ملیون(?:ا|ان|ین)?|ملایین|ملیار(?:ا|ات|ان)?|بلیون|تری?لیون|"
    r"هزار(?:میلیارد)?|صد|میلیون|میلیارد|ہزار|لاکھ|کروڑ|ارب|کھرب|سو|ٹریلین|ملین|بلین"
)
_HEBREW = r"אלף|אלפים|אלפי|מאות|מיליון|מיליוני|מליון|מיליארד|מיליארדי|טריליון|תריסר"
_INDIC = (  # beginnings: endings are attached
    r"हजार|लाख|करोड|अरब(?!\s*(?:देश|राष्ट्र))|खरब|सौ(?![\u0900-\u097f])|दर्जन|कोटी|अब्ज|खर्व|"
    r"হাজার|হাজাৰ|লাখ|লক্ষ(?!্য)|কোটি|শত(?!াংশ)|"
    r"ਹਜਾਰ|ਹਜ਼ਾਰ|ਲੱਖ|ਕਰੋੜ|ਅਰਬ|ਖਰਬ|હજાર|લાખ|કરોડ|અબજ|ହଜାର|ଲକ୍ଷ(?!୍ୟ)|କୋଟି|"
    r"ஆயிரம்|ஆயிரத்|லட்சம்|இலட்சம்|கோடி|மில்லியன்|பில்லியன்|டிரில்லியன்|"
    r"వేయి|వేలు|వేల(?![\u0c00-\u0c7f])|లక్ష(?!్య)|కోటి|కోట్ల|మిలియన్|బిలియన్|ట్రిలియన్|వందలు|"
    r"ಸಾವಿರ|ಲಕ್ಷ(?!್ಯ)|ಕೋಟಿ|ಮಿಲಿಯನ್|ಬಿಲಿಯನ್|ಟ್ರಿಲಿಯನ್|ആയിരം|ലക്ഷം|കോടി|ദശലക്ഷം|മില്യൺ|ബില്യൺ|ട്രില്യൺ|දහස|මිලියන|ලක්ෂ|කෝටි"
)
_WITHOUT_SPACES = (
    r"[万萬亿億]|京(?![都城阪])|兆(?![瓦赫帕欧歐焦字比])|千(?![米克瓦卡赫帕])|"  # 千米 and 兆瓦 are units
    r"百(?![分合科貨货])|"  # 百分点, 百货
    r"만(?!점)|억|[천백조](?=[만억조원명개여달대톤권년]|[^가-힣]|$)|"  # but 백분율 (percent), 조각 (pieces)
    r"พัน(?!ธ)|หมื่น|แสน(?!ด)|ล้าน(?!นา)|ร้อย(?!ละ)|ພັນ|ໝື່ນ|ແສນ|ລ້ານ|ຕື້|"
    r"ពាន់|ម៉ឺន|លាន|ប៊ីលាន|ទ្រីលាន|ထောင်|သောင်း|သိန်း|သန်း|ကုဋေ|ကောဋိ|ሺ|ሚሊዮን|ቢሊዮን"
)
_MILE = frozenset(["mil", "bin"])
_OTHER_WORDS = {**dict.fromkeys(("en", "sv", "no", "nb", "nn", "da"), _MILE), "tr": frozenset(["mil"])}  # by language
_NO_LETTER_FOLLOWS = r"(?![^\W\d_])"
_WORD = (
    rf"(?:(?i:{'|'.join(_CASED)}){_NO_LETTER_FOLLOWS}"
    rf"|(?:{_ARABIC}|{_HEBREW}){_NO_LETTER_FOLLOWS}|{_INDIC}|{_WITHOUT_SPACES})"
)
# Between them spaces, and the end of a formula or the beginning of text in one: $5$ thousand, 5\text{ thousand}.
_BETWEEN = r"(?:[^\S\n]|\\[,;:! )]|\$|~|\\(?:text|textrm|mathrm|mbox)(?![a-z])|\{)*+"
_BEHIND = re.compile(rf"{_BETWEEN}({_WORD})")
_BEHIND_DIGIT = re.compile(rf"(?<=\d){_BETWEEN}(?:{_WORD})(?:\s*+{_WORD})*")  # 5พันล้าน
_BEFORE = re.compile(  # in Swahili, Sinhala, Burmese
    r"(?<![^\W\d_])(?:(?i:elfu|milioni|bilioni|trilioni)|දහස|මිලියන|බිලියන|ට්රිලියන|ကုဋေ)\s*+(?=\d)"
)


def multiplies(after: str, language: str) -> bool:
    """Whether the text behind a number begins with a word that multiplies it. Reads no more than its beginning.

    Args:
        language: ISO code of the text's language, which decides whether a mil is a unit; ``""``: not known.
    """
    found = _BEHIND.match(_plain(after[:_LONGEST]))
    return found is not None and found[1].lower() not in _OTHER_WORDS.get(language, ())


def multiplied_before(before: str) -> bool:
    """Whether the text before a number ends with a word that multiplies it."""
    return _BEFORE.search(_plain(before[-_LONGEST:]) + "0") is not None


def without_multiples(text: str) -> str:
    """The text without words that multiply a number beside them; the same text where there is none.

    Args:
        text: as :func:`common.numbers.plain_digits` gives it.
    """
    plain = _plain(text)
    found = _BEFORE.sub("", _BEHIND_DIGIT.sub("", plain))
    return text if found == plain else found


def _plain(text: str) -> str:
    return text if text.isascii() else text.translate(_PERSIAN).replace(_NUKTA, "")
