"""One look for every table and picture that the library and its commands show."""
