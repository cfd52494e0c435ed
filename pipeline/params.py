"""The keys of params.yaml, explained."""

import click


@click.command()
@click.argument("key", required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "json-schema"]),
    default="text",
    show_default=True,
    help="markdown and json-schema describe all keys.",
)
def params(key: str | None, form: str) -> None:
    """Explain KEY of params.yaml, such as train.baseline.optimizer.lr, or the keys of a section; all without KEY."""
    from leanresnet.scaffold.reference import explain, json_schema, table

    if form == "markdown":
        click.echo(table(), nl=False)
    elif form == "json-schema":
        click.echo(json_schema(), nl=False)
    else:
        click.echo(explain(key))
