"""Folders of shards elsewhere: ranges over HTTP and object stores, tried again where they fail, kept in a cache."""
