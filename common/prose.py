"""What of a text is natural language: code and formulas are told apart from it.

Code is left out of what is compared with a reference as well as of what is judged for its language, so nothing can be
won by making a text look like code. Formulas are compared, but only the words in them are judged.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\s]+`")
_ADDRESS = re.compile(r"\bhttps?://\S+")
_CODE_SIGNS = re.compile(r"[{}\[\]=;<>_|\\@#^~]|[^\W\d]\w*\(|->|::|^\s*(?://|/\*|\*)")
_KEYWORDS = re.compile(
    r"\s*(?:for|if|elif|else|while|def|class|try|except|finally|with|import|from|return|print|let|var|const|function|"
    r"public|private|static|void|using|namespace|package|do|end|begin|then|switch|case|break|continue)\b"
)
_WORD = re.compile(r"[^\W\d_]+")

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

    Of a fenced block the lines stay that read as natural language, and so does inline code of several words.
    """
    if "`" in text:
        text = _INLINE_CODE.sub(" ", _FENCE.sub(lambda fence: f"\n{_prose_lines(fence[1])}\n", text))
    return _ADDRESS.sub(" ", text) if "://" in text else text


def judged_words(text: str) -> str:
    """What of a text is judged for its language: no code, and of formulas only the words in them."""
    text = without_code(text)
    if "$" in text or "\\" in text:
        text = _FORMULA.sub(lambda formula: _SYMBOLS.sub(" ", _COMMANDS.sub(" ", formula[0])), text)
        text = _COMMANDS.sub(" ", text)
    return text


def _prose_lines(block: str) -> str:
    """The lines of a fenced block that read as natural language."""
    return "\n".join(filter(_is_prose, block.splitlines()))


def _is_prose(line: str) -> bool:
    words, signs = len(_WORD.findall(line)), len(_CODE_SIGNS.findall(line))
    # A sentence may well begin with a word such as "for", or end with a semicolon.
    return words >= 8 * signs and words >= 8 if signs or _KEYWORDS.match(line) else words > 0
