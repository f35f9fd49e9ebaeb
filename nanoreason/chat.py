"""A chat on a terminal: its loop, its commands, and responses as they come, thinking in grey, the
answer in bold.

A question is answered on its own: these models know no conversation.
"""

import os
import shlex

from nanoreason.flags import as_utf8, UserError
from nanoreason.pretrained import MODELS, PREFIX
from nanoreason.tasks import answer_key

GREY = "\033[90m"
BOLD = "\033[1m"
PLAIN = "\033[0m"
USAGE = {  # {command: (how it is written, what it does)}
    "/method": ("/method NAME [N]", "greedy, sample, vote, best-of-n, ...; of N responses"),
    "/think": ("/think on or off", "off: answer at once; an empty think block is forced"),
    "/model": ("/model NAME", "another model: one that ships, or a checkpoint or run folder"),
    "/temperature": ("/temperature T", "of sampling; greedy uses none"),
    "/help": ("/help", "this list"),
    "/quit": ("/quit", "end the chat, as Ctrl-D does; Ctrl-C stops an answer"),
}
HELP = "\n".join(f"  {usage:<18}{effect}" for usage, effect in USAGE.values())
ENDS = ("/quit", "/exit", "\x04")  # the last is Ctrl-D where a console hands it on as a line
SWITCH = {"on": "--think", "off": "--no-think"}


# The loop


def make_ready(stdin):
    """Let a terminal's lines be edited, and hold any byte (`as_utf8` reads them)."""
    if hasattr(stdin, "reconfigure"):
        stdin.reconfigure(errors="surrogateescape")
    with_history()


def with_history():
    """Let `input` edit lines and remember them, where Python has readline."""
    try:
        import readline  # noqa: F401, imported for what it does to input
    except ImportError:
        pass


def converse(read, screen, obey, answer):
    """Answer what is typed until its end: Ctrl-D or one of ENDS.

    read: a function that returns the next line, given a prompt to show; screen: a Screen. obey and
    answer: functions of a line, a command or a question. Ctrl-C stops an answer. A mistake, and a
    file that cannot be read, is one line, and the chat goes on.
    """
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            screen.say("")
            return
        except KeyboardInterrupt:
            screen.say("")
            continue
        if line in ENDS:
            return
        try:
            if line == "/help":
                screen.say(HELP)
            elif line.startswith("/"):
                obey(line)
            elif line:
                answer(as_utf8(line))
        except KeyboardInterrupt:
            screen.say("\nstopped")
        except BrokenPipeError:  # nobody sees the screen any more
            raise
        except (UserError, OSError) as error:
            screen.say(str(error))


# Commands


def command_flags(line):
    r"""The flags of sample.py that a command of the chat stands for.

        '/method vote 16'     ->  ['--method=vote', '--n=16']
        '/think off'          ->  ['--no-think']
        '/model r1-zero'      ->  ['--ckpt=pretrained:r1-zero']
        '/model C:\runs\mine' ->  ['--ckpt=C:\runs\mine'], where there is such a file or folder
        '/temperature 0.7'    ->  ['--temperature=0.7']

    Raises UserError for anything else.
    """
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split = True
    words.commenters = ""
    words.escape = ""  # a backslash is a character: paths of Windows have them
    try:
        name, *values = words
    except ValueError as error:  # a quotation mark is missing
        raise UserError(f"{line}: {error}") from None
    match name, values:
        case "/method", [method]:
            return [f"--method={method}"]
        case "/method", [method, n]:
            return [f"--method={method}", f"--n={n}"]
        case "/think", ["on" | "off" as state]:
            return [SWITCH[state]]
        case "/model", [model]:
            return [f"--ckpt={model_path(model)}"]
        case "/temperature", [value]:
            return [f"--temperature={value}"]
    if name in USAGE:
        usage, _ = USAGE[name]
        raise UserError(f"use it as {usage}")
    raise UserError(f"there is no command {name}; /help lists them")


def model_path(name):
    """What --ckpt is for the name of a model that ships, or for the path of another, which must be
    there: else UserError."""
    if name in MODELS:
        return PREFIX + name
    path = os.path.expanduser(name)
    if not name.startswith(PREFIX) and not os.path.exists(path):
        raise UserError(f"there is no model {name}: no file or folder has that name, and the "
                        f"models that ship are {', '.join(MODELS)}")
    return path


def in_words(config, model):
    """Who answers, and how. config: flags of sample.py."""
    method = config.method
    if method not in ("greedy", "sample", "auto"):
        method += f" {config.n}"
    if method == "greedy":
        method += " (no temperature)"
    else:
        method += f" at temperature {config.temperature:g}"
    how = "thinks" if config.think else "answers at once"
    return f"{config.ckpt} ({model.num_params / 1e6:.2f}M parameters), {method}, {how}"


# The screen


def thinking_text(response):
    """The steps of a Response for people to read, indented."""
    steps = [f"  {step}" for step in response.steps]
    return "\n".join(steps or ["  (answered at once, without thinking)"])


def answer_text(response):
    """The answer of a Response for people to read."""
    if response.answer is None:
        return "No answer: the response was cut off or broke the format."
    return f"Answer: {response.answer}"


def agreement(result):
    """How many responses give the answer, and how many give none, in words.

    Answers 7, 7, 8, none and 7  ->  '3 of 5 responses agree, 1 gives no answer'
    """
    keys = [answer_key(response.answer) for response in result.responses]
    silent = keys.count(None)
    if result.answer is None:
        return f"{silent} of {len(keys)} responses give no answer"
    agree = f"{keys.count(answer_key(result.answer))} of {len(keys)} responses agree"
    return f"{agree}, {silent} give{'s' * (silent == 1)} no answer" if silent else agree


def printable(text):
    """Text without what moves a cursor or rings a bell: a model may write any byte.

        'a\\tb\\x1b[2J\\n'  ->  'a b?[2J\\n'
    """
    text = text.replace("\t", " ").replace("\u00a0", " ")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


class Screen:
    """Where responses are shown. Styles show on terminals only, and not where NO_COLOR is set
    (no-color.org) or the terminal is a dumb one.

    out: a text stream; environ: {name: value} of the environment.
    """

    def __init__(self, out, environ=os.environ):
        self.out = out
        is_plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self.styled = out.isatty() and not is_plain
        if self.styled and os.name == "nt":
            os.system("")  # from then on the console of Windows reads colours

    def write(self, text, style=""):
        """Write text at once, as far as it is printable."""
        text = printable(text)
        if style and self.styled:
            text = f"{style}{text}{PLAIN}"
        self.out.write(text)
        self.out.flush()

    def say(self, text, style=""):
        """Write lines of their own."""
        self.write(text, style)
        self.write("\n")

    def show(self, result):
        """The response that a search.Result has chosen; of several, how many agree with it."""
        self.say(thinking_text(result.response), GREY)
        self.say(f"\n{answer_text(result.response)}", BOLD)
        if len(result.responses) > 1:
            self.say(agreement(result))


class Stream:
    """A response on a Screen, token by token.

    tokenizer: explains the ids. `add` takes each id as it comes, `end` the Response that they made.
    """

    def __init__(self, screen, tokenizer):
        self.screen = screen
        self.tokenizer = tokenizer
        self.thinks = True  # whether what comes is thinking, and no answer yet
        self.ids = []  # of the thinking, or of the answer
        self.shown = ""  # their text as far as it is on the screen

    def add(self, token):
        """The next id. The bytes of one character may be several tokens: they show together."""
        if token == self.tokenizer.end_think and self.thinks:
            self._answer()
        elif token not in self.tokenizer.specials:
            self.ids.append(token)
            whole = self.tokenizer.decode(self.ids).rstrip("\ufffd")
            self._show(whole[len(self.shown) :])

    def _show(self, new):
        """Write what is new of the thinking or the answer; each line of thinking is indented."""
        lines = new
        if self.thinks:
            lines = new.replace("\n", "\n  ")
            if new and not self.shown:
                lines = "  " + lines
        self.screen.write(lines, GREY if self.thinks else BOLD)
        self.shown += new

    def _answer(self):
        """The thinking is over."""
        if not self.shown.strip():
            self.screen.write("  (answered at once, without thinking)", GREY)
        self.screen.write("\n\n")
        self.screen.write("Answer: ", BOLD)
        self.thinks = False
        self.ids = []
        self.shown = ""

    def end(self, response):
        """The response is over; where it has no answer, say so."""
        self.screen.write("\n")
        if response.answer is None:
            self.screen.say(f"\n{answer_text(response)}", BOLD)
