"""--chat: the loop that reads turns and commands from the keyboard, or from a pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

from qwen2vl_cli.chat import Chat
from qwen2vl_cli.costs import in_words, media_of, open_media
from qwen2vl_cli.progress import watched_clips
from qwen2vl_cli.prompts import clip_options, with_files
from qwen2vl_cli.questions import GREETING, is_bundled, questions_text
from qwen2vl_cli.terminal import came_from_debugger, note, sentence


def answer(chat: Chat, content: list[dict], args: argparse.Namespace) -> None:
    """One turn: the answer goes to stdout as it comes (not with --json), and what is to say about it to stderr."""
    with closing(chat.turn(content)) as pieces:
        for piece in pieces:
            if not args.json:
                print(piece, end="", flush=True)

    if not args.json:
        print(flush=True)
        if chat.report["cut_off"]:
            note(f"(Cut off after {args.max_new_tokens} tokens; --max-new-tokens allows more.)")

    if args.verbose:
        tokens, seconds, speed = (chat.report[key] for key in ("tokens", "seconds", "tokens_per_second"))
        note(f"prepare   {seconds['prepare']:.2f} s to make inputs of pictures, clips and text")
        note(f"prefill   {seconds['prefill']:.2f} s to read {tokens['read']} of {tokens['prompt']} prompt tokens")
        note(f"decode    {seconds['decode']:.2f} s for {tokens['answer']} tokens, {speed:.1f} tokens/s")


def has_text(content: list[dict]) -> bool:
    """Whether a turn can be answered: pictures and clips alone wait for a question."""
    return any(item["type"] == "text" for item in content)


class ChatLoop:
    """Reads lines until stdin ends. `waiting` holds what was attached and belongs to the next turn."""

    def __init__(self, chat: Chat, content: list[dict], args: argparse.Namespace):
        self.chat = chat
        self.waiting = content  # what the command line gave to begin with
        self.given = media_of([{"content": content}])  # its pictures and clips, with which /clear begins again
        self.args = args
        self.by_hand = sys.stdin.isatty()
        self.answering = False
        self.messages_before = 0  # how many there were when the turn began
        self.lines = 0  # that said something

    def run(self) -> None:
        if self.by_hand:
            note(chat_help())
            if is_bundled(self.args.model):
                note(GREETING)
            with suppress(ImportError):
                import readline  # noqa: F401  (gives input() line editing and a history)

        with suppress(EOFError):  # raised at the end of stdin, and by /exit
            if has_text(self.waiting):
                self.guarded(self.answer)
            while True:
                self.guarded(self.read)
        if not self.by_hand and not self.lines and not self.chat.report:
            note("stdin ended before a question came, so nothing was answered; pipe lines in, or run it in a terminal.")

    def guarded(self, step: Callable[[], None]) -> None:
        """Take one step. An error in it is reported, and the conversation goes on."""
        self.answering = False
        try:
            step()
        except EOFError:
            raise
        except KeyboardInterrupt:
            if not self.by_hand:
                raise
            note(self.what_was_stopped())  # at a terminal, Ctrl-C never costs the conversation
        except Exception as error:
            if self.args.debug or isinstance(error, BrokenPipeError) or came_from_debugger(error):
                raise
            dropped = " (This turn is dropped; the conversation goes on.)" if self.answering else ""
            note(sentence(error) + dropped)

    def what_was_stopped(self) -> str:
        """What to say after Ctrl-C, by what it came upon: an answer, or the prompt and all that a line can ask for."""
        if not self.answering:
            return "\n(The line is dropped, the conversation goes on; Ctrl-D or /exit leaves.)"
        if self.messages_before == len(self.chat.messages):
            return "\n(Stopped before the first word: this turn is dropped; the conversation goes on.)"
        return "\n(Cut short.)"

    def read(self) -> None:
        """Read one line and do what it says: a command, or a turn."""
        line = input("> " if self.by_hand and sys.stdout.isatty() else "")
        self.lines += bool(line.strip())
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            self.command(name, os.path.expanduser(argument.strip().strip("'\"")))
        elif line.rstrip(" .!()").lower() in LEAVING:
            note("(Left. To ask the model this word, put a space before it.)")
            raise EOFError
        elif line.strip():
            self.attach(with_files(line.strip()))
            if has_text(self.waiting):
                self.answer()

    def command(self, name: str, argument: str) -> None:
        """Run one command of the table below."""
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            note(f"error: {name} is no command; /help lists them, and a space before the slash makes it text.")
        elif command.argument and not argument:
            raise ValueError(f"{name} needs the name of a file behind it.")
        else:
            command.run(self, argument)

    def answer(self) -> None:
        """Take the turn. Whatever comes of it, the next one starts with nothing attached."""
        turn = self.waiting
        self.waiting = []
        self.messages_before = len(self.chat.messages)
        self.answering = True
        answer(self.chat, turn, self.args)

    def attach(self, items: list[dict]) -> None:
        """Open the media of items, describe each on stderr, and keep all of them for the next turn."""
        items = watched_clips(open_media(items, self.chat.processor, self.chat.context, clip_options(self.args)))
        for item in media_of([{"content": items}]):
            note(in_words(item["measured"]))
        self.waiting = [*self.waiting, *items]

    # ── The commands, each with what follows its name ──

    def add_image(self, path: str) -> None:
        """/image PATH"""
        self.attach([{"type": "image", "image": path}])

    def add_video(self, path: str) -> None:
        """/video PATH"""
        self.attach([{"type": "video", "video": path}])

    def clear(self, _: str) -> None:
        """/clear: also what waits for the next turn is forgotten, but for what the command line gave."""
        self.chat.clear()
        self.waiting = [dict(item) for item in self.given]
        names = ", ".join(item["measured"]["file"] for item in self.given)
        note(f"All is forgotten. The next turn begins with {names} again." if names else "All is forgotten.")

    def show_tokens(self, _: str) -> None:
        """/tokens"""
        used = self.chat.tokens()
        note(f"{used} of {self.chat.context} tokens are in use ({used / self.chat.context:.1%}).")

    def save(self, path: str) -> None:
        """/save FILE"""
        self.chat.save(path)
        note(f"Wrote {path}.")

    def show_questions(self, _: str) -> None:
        """/questions"""
        note(questions_text(self.args.model))

    def show_help(self, _: str) -> None:
        """/help"""
        note(chat_help())

    def leave(self, _: str) -> None:
        """/exit: the same as the end of stdin."""
        raise EOFError


@dataclass(frozen=True)
class Command:
    run: Callable[[ChatLoop, str], None]
    argument: str  # what must follow the command's name; "" if nothing
    meaning: str


COMMANDS = {
    "/image": Command(ChatLoop.add_image, "PATH", "add a picture to the next turn"),
    "/video": Command(ChatLoop.add_video, "PATH", "add a clip to the next turn"),
    "/clear": Command(ChatLoop.clear, "", "forget everything; --image and --video stay for the next turn"),
    "/tokens": Command(ChatLoop.show_tokens, "", "how full the context is"),
    "/save": Command(ChatLoop.save, "FILE", "write the conversation as JSON messages"),
    "/questions": Command(ChatLoop.show_questions, "", "what the bundled model was taught to answer"),
    "/help": Command(ChatLoop.show_help, "", "show this list"),
    "/exit": Command(ChatLoop.leave, "", "leave (or Ctrl-D, quit, exit, bye); Ctrl-C stops an answer"),
}
ALIASES = {"/quit": "/exit", "/bye": "/exit"}
SPACE = "A space before /help, quit and the like makes them text for the model."
LEAVING = ("quit", "exit", "bye")  # without a slash; a space before the word makes it text, as with commands


def chat_help() -> str:
    """The commands, one a line."""
    lines = [f"{f'{name} {command.argument}':<13}{command.meaning}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, '@photo.jpg or @"my clip.mp4" inside a line puts that file there.', SPACE])
