"""Languages by any name: what a code, a tag or a name means, and what is said of those that are unknown."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import fasttext
import langcodes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_data.name_data import CODE_TO_NAMES

from common.instructions import instruction
from common.languages import (
    _LABEL_BY_VARIETY,
    CODES,
    _checked,
    code_of,
    count_as_one,
    declare,
    display_name,
    english_name,
    native_name,
    tag,
)  # fmt: skip
from common.writing import scripts_of_language
from reward.gate import shipped_model

ROOT = Path(__file__).parents[2]
# Labels of lid.176 that are not, or no longer, the codes of the standards.
ODD_LABELS = {"als", "bh", "bxr", "diq", "eml", "gom", "mhr", "nah", "no", "pnb", "sh", "tl"}


def test_they_are_those_that_the_detector_knows() -> None:
    labels = fasttext.load_model(str(shipped_model())).get_labels()
    assert {label.removeprefix("__label__") for label in labels} == set(CODES) and len(CODES) == 176


@given(
    code=st.sampled_from(CODES),
    form=st.sampled_from(["code", "english", "native", "alpha3", "region", "script", "tag"]),
    case=st.sampled_from([str, str.upper, str.lower, str.title]),
    unicode_form=st.sampled_from(["NFC", "NFD"]),
    space=st.sampled_from(["", " ", "\n"]),
)
def test_every_form_of_every_language_leads_back_to_it(
    code: str, form: str, case: object, unicode_form: str, space: str
) -> None:
    """langcodes makes the three-letter codes and the likely scripts, independently of what reads them."""
    assert callable(case)
    name = {"code": code, "english": english_name(code), "native": native_name(code), "tag": code}.get(form)
    if name is None and code in ODD_LABELS:
        return
    if name is None:
        language = langcodes.Language.get(code)
        likely = language.maximize()
        name = {"alpha3": language.to_alpha3(), "region": f"{code}-{likely.territory or 'US'}"}.get(form)
        name = name or f"{code}_{likely.script or 'Latn'}"
    assert code_of(f"{space}{unicodedata.normalize(unicode_form, case(name))}{space}") == code  # type: ignore[arg-type]
    assert tag(code) == f"<|out_lang_{code}|>" and code_of(code) == code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pt-BR", "pt"), ("zh-Hant", "zh"), ("zh_CN", "zh"), ("zho", "zh"), ("chi", "zh"), ("cmn", "zh"), ("nb", "no"),
        ("nob", "no"), ("nno", "nn"), ("iw", "he"), ("in", "id"), ("ji", "yi"), ("mo", "ro"), ("fil", "tl"),
        ("eng_Latn", "en"), ("arb_Arab", "ar"), ("als_Latn", "sq"), ("swh", "sw"), ("zsm", "ms"), ("pes", "fa"),
        ("zh-yue", "yue"), ("sr-Latn", "sr"), ("hbs", "sh"), ("gsw", "als"), ("Simplified Chinese", "zh"),
        ("Chinese (Simplified)", "zh"), ("bokmål", "no"),
        ("Mandarin", "zh"), ("Brazilian Portuguese", "pt"), ("Portuguese (Brazil)", "pt"), ("Farsi", "fa"),
        ("Norwegian Bokmål", "no"), ("svenska", "sv"), ("Ελληνικά", "el"), ("ΕΛΛΗΝΙΚΑ", "el"), ("Українська", "uk"),
        ("日本語", "ja"), ("简体中文", "zh"), ("한국어", "ko"), ("हिन्दी", "hi"), ("Español", "es"), ("espanol", "es"),
        ("quy", "qu"), ("quy_Latn", "qu"), ("quh", "qu"), ("qub", "qu"), ("pbt", "ps"), ("pbt_Arab", "ps"),
        ("uzs", "uz"), ("ary", "ar"), ("apc_Arab", "ar"), ("Moroccan Arabic", "ar"), ("arz_Arab", "arz"),
        ("Bangla", "bn"), ("Bengali", "bn"), ("Central Kurdish", "ckb"), ("Kurdish (Sorani)", "ckb"),
        ("Chinese (Cantonese)", "yue"), ("Arabic (Egyptian)", "arz"), ("Arabic (Moroccan)", "ar"),
        ("Norwegian (Nynorsk)", "nn"), ("German (Swiss)", "als"), ("Serbian (Latin)", "sr"),
        ("Assamese (Bengali)", "as"), ("English (Nauru)", "en"), ("English (IN)", "en"), ("Irish (ga)", "ga"),
        ("Portuguese (Brazil", "pt"), ("Farsi (Dari)", "fa"),
    ],
)  # fmt: skip
def test_names_in_use(name: str, code: str) -> None:
    assert code_of(name) == code


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("frnch", "did you mean 'french'"),
        ("Germann", "did you mean 'german'"),
        ("italien", "did you mean 'italian'"),
        ("tlh", "it is Klingon, which is none of the 176 languages"),
        ("tir", 'declare it with run.other_languages = {tir = "Tigrinya"}'),
        ("Hausa", 'declare it with run.other_languages = {ha = "Hausa"}'),
        ("klingon", "it is Klingon"),
        ("mnw", 'run.other_languages = {mnw = "Mon language"}'),
        ("nan-Hant", "which is none of the 176"),
        ("Chinese (Hakka)", "it is Hakka Chinese"),
        ("Foo (German)", "did you mean 'low german'"),
        ("xx", "give an ISO 639 code"),
        ("und", "give an ISO 639 code"),
        ("", "give an ISO 639 code"),
        ("python", "give an ISO 639 code"),
        ("\ud83d", "give an ISO 639 code"),
    ],
)
def test_an_unknown_language_never_becomes_another(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as error:
        code_of(name)
    str(error.value).encode()


# The codes of FLORES-200, and those of them that are languages which lid.176 lacks.
FLORES = """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab arb_Latn ars_Arab
    ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn
    ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab
    crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn
    fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn
    hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn
    jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn
    khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn
    lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab
    min_Latn mkd_Cyrl plt_Latn mlt_Latn mni_Beng khk_Cyrl mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
    nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pes_Arab pol_Latn por_Latn prs_Arab
    pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn
    smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
    szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn tso_Latn
    tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn
    wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
"""
LACKING = """
    ace aka awa ayr bam ban bem bjn bug cjk crh dik dyu dzo ewe fao fij fon fur fuv hau hne ibo kab kac kam kas knc kbp
    kea kik kin kmb kon lij lin ltg lua lug luo lus mag mni mos mri nso nus nya gaz pag pap run sag sat shn smo sna sot
    ssw szl tir taq tpi tsn tso tum twi tzm umb wol xho zul
"""


def test_the_codes_of_flores_are_known_or_languages_that_the_detector_lacks() -> None:
    codes = FLORES.split()
    assert len(codes) == 204
    unknown = set()
    for code in codes:
        try:
            assert code_of(code) in CODES
        except ValueError as error:
            assert "run.other_languages = {" in str(error), code
            unknown.add(code.partition("_")[0])
    assert unknown == set(LACKING.split())


def test_varieties_are_members_of_the_macrolanguage_and_no_languages_of_the_detector() -> None:
    """By the table of langcodes, which is that of the registry of language subtags."""
    for code, label in _LABEL_BY_VARIETY.items():
        assert langcodes.data_dicts.MACROLANGUAGES[code] == label and code not in CODES, code


def test_a_declared_language_is_given_as_any_other() -> None:
    declare({"tir": "Tigrinya", "ary": "Moroccan Arabic", "conlang": "Kla Kla"})
    for name in ("tir", "TIR", "ti", "tir_Ethi", "ti-ER", "Tigrinya", "tigrinya", "ትግርኛ"):
        assert code_of(name) == "tir", name
    assert (english_name("ti"), native_name("ti"), tag("ti")) == ("tigrinya", "ትግርኛ", "<|out_lang_tir|>")
    assert instruction("tir") == (
        "You are a helpful assistant. Always answer in Tigrinya (ትግርኛ), and in no other language."
    )
    assert scripts_of_language("tir") == scripts_of_language("am")
    assert [code_of(one) for one in ("ary_Arab", "Moroccan Arabic", "apc", "ar")] == ["ary", "ary", "ar", "ar"]
    assert (code_of("kla kla"), native_name("conlang")) == ("conlang", "Kla Kla")
    assert "answer in Kla Kla, and" in instruction("conlang")
    assert all(code_of(code) == code for code in CODES) and "tir" not in CODES


def test_the_declaration_that_the_error_proposes_is_accepted() -> None:
    """Of every language that CLDR has a code for; of some the name is the code of another, as Mon is of Mongolian."""
    proposed = {}
    for code in CODE_TO_NAMES:
        try:
            code_of(code)
        except ValueError as error:
            if found := re.search(r'run\.other_languages = \{(\w+) = "(.+)"\} \(docs', str(error)):
                proposed[code] = (found[1], found[2])
    assert len(proposed) > 7000 and sum(name.endswith(" language") for _, name in proposed.values()) > 20
    for code, (label, name) in proposed.items():
        assert _checked({label: name}).by_standard, code
    declare(dict([proposed["mnw"]]))
    assert (code_of(english_name("mnw")), display_name("mnw"), code_of("mon")) == ("mnw", "Mon language", "mn")


@pytest.mark.parametrize("name", ["isiZulu", "K'iche'", "Arabic (Moroccan)", "MALAY of Kelantan"])
def test_a_declared_name_stays_as_it_was_given(name: str) -> None:
    label = {"isiZulu": "zu", "K'iche'": "quc", "Arabic (Moroccan)": "ary", "MALAY of Kelantan": "mfa"}[name]
    declare({label: name})
    assert display_name(label) == name and english_name(label) == name.lower() and code_of(name.upper()) == label
    assert f"Always answer in {name}" in instruction(label)
    assert instruction(label, {"default": "In {language}."}) == f"In {name}."


@pytest.mark.parametrize(
    ("earlier", "newer"),
    [
        ({"tir": "Tigrinya"}, {"tir": "Tigrigna"}),
        ({"ti": "Tigrinya"}, {"tir": "Tigrinya"}),
        ({"xaa": "Hausa"}, {"ha": "The language of Kano"}),
        ({"xaa": "Kla"}, {"xab": "Kla"}),
        ({"kla": "Other"}, {"xaa": "Kla"}),
        ({"xaa": "Kla"}, {"kla": "Other"}),
    ],
)
def test_of_two_configurations_in_one_process_the_newest_is_understood(
    earlier: dict[str, str], newer: dict[str, str]
) -> None:
    asked = ["ti", "tir", "tir_Ethi", "Tigrinya", "ትግርኛ", "ha", "hau", "Hausa", "Kla", "other", *newer, *newer.values()]

    def known() -> dict[str, str]:
        return {name: code for name in asked if (code := _code_or_none(name)) in newer}

    declare(newer)
    alone = known()
    assert {*newer.items()} <= {(code, display_name(code)) for code in alone.values()}
    declare(earlier)
    for label in earlier:
        assert code_of(label) == label and display_name(label) == earlier[label]
    declare(newer)
    assert known() == alone
    for label in earlier:
        display_name(label)  # what the first configuration has can still be named


def _code_or_none(name: str) -> str:
    try:
        return code_of(name)
    except ValueError:
        return ""


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"de": "Saxon"}, "'de' is German, which is known as 'de'"),
        ({"deu": "German"}, "'deu' is German, which is known as 'de'"),
        ({"nob": "Bokmål"}, "'nob' is Norwegian, which is known as 'no'"),
        ({"tir_Ethi": "Tigrinya"}, "must be 2 to 8 letters"),
        ({"gaa": "Ga"}, "another language, 'ga': give one that tells them apart, as \"Ga language\""),
        ({"mnw": " Mon"}, "another language, 'mn': give one that tells them apart, as \"Mon language\""),
        ({"xaa": "arabic"}, "is the name or code of another language, 'ar'"),
        ({"xaa": "One", "xab": "one"}, "is the name or code of another language, 'xaa'"),
        ({"ti": "Tigrinya", "tir": "Tigrigna"}, "'tir' and 'ti' are one language"),
        ({"malay": "Kelantan Malay"}, "'malay' is Malay, which is known as 'ms': leave it out, or choose another"),
        ({"arb": "Standard"}, "'arb' is Arabic, which is known as 'ar'"),
        ({"stq": "Frisian"}, "is the name or code of another language, 'fy'"),
        ({"xaa": "Farsi"}, "is the name or code of another language, 'fa'"),
        ({"xaa": "Deutsch"}, "is the name or code of another language, 'de'"),
        ({"xaa": "svenska"}, "is the name or code of another language, 'sv'"),
        ({"xaa": "Mandarin"}, "is the name or code of another language, 'zh'"),
        ({"xaa": "deu"}, "is the name or code of another language, 'de'"),
        ({"xaa": "pt-BR"}, "is the name or code of another language, 'pt'"),
        ({"xaa": "Kurdish (Sorani)"}, "is the name or code of another language, 'ckb'"),
        ({"ary": "Tunisian Arabic"}, "is the name or code of another language, 'ar'"),
        ({"ary": "Kla", "kla": "Other"}, "is the name or code of another language, 'kla'"),
        ({"zu": "Hausa", "ha": "Haussa"}, "is the name or code of another language, 'ha'"),
        ({"xaa": " "}, "is no name"),
        ({"xaa": "two\nlines"}, "is no name"),
    ],
)  # fmt: skip
def test_what_cannot_be_declared_is_named(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        declare(given)
    with pytest.raises(ValueError, match="unknown language"):
        code_of("tir")


@given(st.text(max_size=12))
def test_any_text_is_a_language_or_an_error_of_one_line(text: str) -> None:
    try:
        assert code_of(text) in CODES
    except ValueError as error:
        assert "unknown language" in str(error) and "\n" not in str(error)


def test_which_languages_count_as_one() -> None:
    assert count_as_one("no", "nn") and count_as_one("de", "de")
    assert not count_as_one("id", "ms") and not count_as_one("de", "") and not count_as_one("no", "da")


def test_a_known_language_needs_neither_torch_nor_the_library_of_names() -> None:
    check = (
        "import sys, common.languages as c; c.code_of('German'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'langcodes', 'language_data', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
