"""What of a text is natural language: code and formulas are told apart from it.

Code is left out of what is compared with a reference as well as of what is judged for its language, so nothing can be
won there by making a text look like code. Formulas are compared, but only the words in them are judged.

Other terms read a text with its code, and a policy that would rather write another language learns to write it as code.
So what stands in a fence has to look like code line by line, comments and longer texts in quotation marks are no code,
and what stands between two backticks is code only as long as there is little of it beside the rest of the text:

* a bare word, as `liste`: as long as all of these together have at most half as many letters as the rest, or no more
  than the rest and 12;
* what has a sign, digit or underscore in it, as `len(x)`, a name of a programming language, as `None`, and addresses:
  as long as these have at most as many letters as the rest, or 60.

What is more counts as words. A letter of Chinese or Japanese counts as three and one of Korean as two, because words
have so few of them.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"```([^\n`]*)(\n?)(.*?)(?:```|\Z)", re.DOTALL)
_CODE_SIGNS = re.compile(r"[{}\[\]=<>_|\\@#^~]|[^\W\d]\w*\(|->|::|\+\+")
_KEYWORDS = re.compile(
    r"\s*(?:for|if|elif|else|while|def|class|try|except|finally|with|import|from|return|print|let|var|const|function|"
    r"public|private|static|void|using|namespace|package|do|end|begin|then|switch|case|break|continue|done|fi|esac|"
    r"int|float|double|char|bool|unsigned|auto|String|SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|JOIN|GROUP|ORDER|CREATE)\b"
)
# What a comment begins with, unless it is a line for the preprocessor of C or for the shell, and what it ends with.
_COMMENT = re.compile(
    r"\s*(?:#+(?!\s*(?:include|define|undef|ifdef|ifndef|if|elif|else|endif|pragma|error)\b|!)|//+|/\*+|\*+/?|--+|<!--+|%+)"
)
_COMMENT_ENDS = ("*/", "-->")
_LATER_COMMENT = re.compile(r"\s(?:#+|//+|/\*+|--)\s*(?=[^\W\d_])")  # after code on the same line
_STYLE = re.compile(r"\s*[a-z-]+\s*:\s")  # "color: red;" of a style sheet
_QUOTED = re.compile(r""""([^"\n]*)"|'([^'\n]*)'""")
_QUOTED_WORDS = 4  # in quotation marks, from which they are no code
_CHINESE_JAPANESE, _KOREAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff", r"\uac00-\ud7af"
_WORD = re.compile(rf"[{_CHINESE_JAPANESE}]{{1,2}}|[^\W\d_{_CHINESE_JAPANESE}]+")
_COUNT_AS_THREE, _COUNT_AS_TWO = re.compile(f"[{_CHINESE_JAPANESE}]"), re.compile(f"[{_KOREAN}]")

# Code in a line of text, or an address: a host with a dot or slash after it.
_SPAN = re.compile(r"`([^`\s]+)`|\bhttps?://((?:[^\s/.`]+/|[^\s/.`]+\.[^\s.`])[^\s`]*)")
_EDGES = ".,;:!?…'\"*"  # punctuation around a word, which makes no code of it
_SPAN_SIGNS = re.compile(r"[\d_(){}\[\]<>=+*/\\|&^%$#@~.:]|^-|[a-z][A-Z]")
_NAMES = re.compile(
    r"print|None|True|False|null|nil|NULL|NaN|undefined|int|str|bool|float|double|char|dict|tuple|len|elif|def|lambda|"
    r"async|await|enum|struct|const|var|void|printf|println|sizeof|typeof|malloc|std(?:in|out|err)|numpy|pandas"
)
# Of the letters of the rest of the text, and the letters that are few in any text.
_BARE_SHARE, _BARE_LETTERS = 0.5, 12
_CODE_SHARE, _CODE_LETTERS = 1.0, 60

_FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\]|\\boxed\s*\{(?:[^{}]|\{[^{}]*\})*\}", re.DOTALL)
# Letters of a formula that are symbols: one or two of them, or names of points in capitals.
_SYMBOLS = re.compile(
    r"(?<![^\W\d_])(?:[A-Za-z]{1,2}|[A-Z]{3,4}|sin|cos|tan|log|exp|max|min|lim|mod|gcd|lcm)(?![^\W\d_])"
)
_COMMANDS = re.compile(
    r"\\(?:[dt]?frac|sqrt|sum|prod|int|oint|cdot|cdots|ldots|dots|times|div|pm|mp|le|leq|ge|geq|neq?|approx|equiv|sim|"
    r"boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|mathbb|mathcal|mathsf|operatorname|left|right|big|Big|bigg|Bigg|"
    r"begin|end|quad|qquad|infty|partial|nabla|forall|exists|in|notin|subset|subseteq|cup|cap|to|mapsto|rightarrow|"
    r"Rightarrow|leftarrow|Leftarrow|implies|iff|therefore|because|angle|triangle|circ|degree|perp|parallel|overline|"
    r"underline|hat|bar|vec|tilde|dot|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|lim|max|min|gcd|mod|pmod|"
    r"bmod|binom|dbinom|displaystyle|alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|"
    r"pi|rho|sigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)(?![A-Za-z])"
    r"(?:\{(?:aligned?|cases|[bpvBV]?matrix|array|gather|equation|split)\*?\})?"
)


def without_code(text: str) -> str:
    """The text without code and addresses.

    Of a fenced block stays what reads as natural language, and so does inline code of several words. Where there is
    more inline code than a text about code has, it stays as the words in it.
    """
    if "`" in text:
        text = _FENCE.sub(_prose_of_fence, text)
    if "`" not in text and "://" not in text:
        return text
    spans = [(match, _is_bare(match)) for match in _SPAN.finditer(text)]
    rest = _size(_without_symbols(_SPAN.sub(" ", text)))
    bare = sum(_size(match[0]) for match, is_bare in spans if is_bare)
    code = sum(_size(match[1] or match[2]) for match, is_bare in spans if not is_bare)
    stays = {
        True: bare > max(_BARE_SHARE * rest, min(_BARE_LETTERS, rest)),
        False: code > max(_CODE_SHARE * rest, _CODE_LETTERS),
    }
    parts, end = list[str](), 0
    for match, is_bare in spans:
        parts += [text[end : match.start()], f" {_words_of(match)} " if stays[is_bare] else " "]
        end = match.end()
    return "".join([*parts, text[end:]])


def judged_words(text: str) -> str:
    """What of a text is judged for its language: no code, and of formulas only the words in them."""
    return _without_symbols(without_code(text))


def _without_symbols(text: str) -> str:
    if "$" in text or "\\" in text:
        text = _FORMULA.sub(lambda formula: _SYMBOLS.sub(" ", _COMMANDS.sub(" ", formula[0])), text)
        text = _COMMANDS.sub(" ", text)
    return text


# -- between two backticks ---------------------------------------------------------------------------------------------


def _is_bare(span: re.Match[str]) -> bool:
    """Whether it is a word that might stand in any sentence."""
    word = (span[1] or "").strip(_EDGES)
    return bool(span[1]) and not _NAMES.fullmatch(word) and not _SPAN_SIGNS.search(word)


def _words_of(span: re.Match[str]) -> str:
    """The words of code or of an address: ``getHostName`` and ``get_host_name`` have three."""
    return re.sub(r"[\d_!-&(-,./:-@\[-^{-~]+|(?<=[a-z])(?=[A-Z])", " ", span[1] or span[2])


def _size(text: str) -> int:
    """The letters of a text, those that stand for more counted as such."""
    letters = sum(map(str.isalpha, text))
    return letters + 2 * len(_COUNT_AS_THREE.findall(text)) + len(_COUNT_AS_TWO.findall(text))


# -- in a fence --------------------------------------------------------------------------------------------------------


def _prose_of_fence(fence: re.Match[str]) -> str:
    """What of a fenced block reads as natural language."""
    heading, newline, block = fence[1].strip(), fence[2], fence[3]
    if not newline or not block.strip():  # "```text```", or a block of nothing but the name of its language
        return f" `{heading}` " if len(heading.split()) == 1 else f" {heading} "
    kept = [heading] if len(_WORD.findall(heading)) > 2 and _is_prose(heading) else []
    for line in block.splitlines():
        kept += _prose_of_line(line)
    return "\n{}\n".format("\n".join(kept))


def _prose_of_line(line: str) -> list[str]:
    """The comments, sentences and quoted texts of a line of code."""
    if begin := _COMMENT.match(line):
        code, comment = "", line[begin.end() :]
    else:
        code, *rest = _LATER_COMMENT.split(line, maxsplit=1)
        comment = "".join(rest)
    for end in _COMMENT_ENDS:
        comment = comment.rstrip().removesuffix(end)
    return _prose_of_statements(code) + _prose_of_statements(comment, is_comment=True)


def _prose_of_statements(line: str, is_comment: bool = False) -> list[str]:
    kept = list[str]()
    statements = line.split(";")
    for number, statement in enumerate(statements, 1):
        is_ended = number < len(statements)
        is_style = is_ended and not is_comment and bool(_STYLE.match(statement))
        if _is_prose(statement, is_comment, is_style):
            kept.append(statement)
        else:
            quoted = (first or second for first, second in _QUOTED.findall(statement))
            kept += [text for text in quoted if len(_WORD.findall(text)) >= _QUOTED_WORDS]
    return kept


def _is_prose(line: str, is_comment: bool = False, is_style: bool = False) -> bool:
    words, signs = len(_WORD.findall(line)), len(_CODE_SIGNS.findall(line))
    # A sentence may well begin with a word such as "for", and a comment often does.
    is_code = signs or is_style or (_KEYWORDS.match(line) and not is_comment)
    return words >= 8 * signs and words >= 8 if is_code else words > 0
