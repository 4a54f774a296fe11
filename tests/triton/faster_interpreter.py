"""Triton's interpreter without work that it repeats."""

from __future__ import annotations


def patch_the_language_once() -> None:
    """Not anew at every call of a function by a kernel, for which the interpreter goes through all of its members."""
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def once(function: object) -> object:
        seen = [value for value in function.__globals__.values() if value is language or value is language.core]
        patched = seen and not any(language.core.is_builtin(module.load) for module in seen)
        return interpreter._LangPatchScope() if patched else patch(function)

    interpreter._patch_lang = once
