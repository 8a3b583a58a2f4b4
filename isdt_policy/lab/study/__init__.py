"""The method study: every objective on the same network and data, measured over seeds. `isdt study --help`."""
