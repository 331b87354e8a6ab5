"""The documentation's site, and the tables in it that are made of what was measured."""
