"""`python -m isdt_policy`: the `isdt` command where no script is installed, for example under torchrun."""

from isdt_policy.cli import main

raise SystemExit(main())
