"""Entry point of ``arcsup`` and ``arcd``."""


def main() -> None:
    """Run the command line."""
    from arcsup.cli.main import cli

    cli()


if __name__ == "__main__":
    main()
