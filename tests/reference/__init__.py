"""The oracles of the tests: everything here is written without any code of `agnews_fast`."""
