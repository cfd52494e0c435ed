"""Command params: the descriptions of the keys of params.yaml."""

import click

from pipeline.options import Name


def _keys() -> list[str]:
    from leanresnet.scaffold.reference import described_keys

    return [key.path for key in described_keys()]


@click.command()
@click.argument("key", required=False, type=Name(_keys), metavar="[KEY]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "json-schema"]),
    default="text",
    show_default=True,
    help="Format of the output; markdown and json-schema always describe all keys.",
)
def params(key: str | None, form: str) -> None:
    """Describe a key of params.yaml, or all keys.

    KEY is a key such as train.baseline.optimizer.lr, its end such as optimizer.lr, or a section.
    """
    from leanresnet.scaffold.reference import explain, json_schema, table

    if form == "markdown":
        click.echo(table(), nl=False)
    elif form == "json-schema":
        click.echo(json_schema(), nl=False)
    else:
        click.echo(explain(key))
