"""The command line: parse, call one ``Host`` method, print. One file per verb; nothing here knows how a verb works."""
