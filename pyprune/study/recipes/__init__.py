"""Recipes: experiments as data, run by one engine; those of the paper come with the package."""
