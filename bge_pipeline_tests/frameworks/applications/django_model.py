"""An application on a Django model, which embeds its texts itself."""

from urllib.parse import parse_qs, urlsplit

from programs import run


def open_store(program, url, known):
    import django
    from django.apps import apps
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={"default": _database(url)}, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
        django.setup()
    apps.all_models["library"].clear()  # the application starts anew with another version of its models
    opened = run(program, __name__="library.models")
    from django.db import connection

    article = opened["Article"]
    if article._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.execute("CREATE EXTENSION IF NOT EXISTS vector")
            editor.create_model(article)
    if "operations" in opened:
        _migrate(opened["operations"])
    return opened


def close(opened):
    if opened:
        from django.db import connection

        connection.close()


def add(opened, known, texts):
    article = opened["Article"]
    article.objects.bulk_create(
        article(pk=int(number), body=text, embedding=known[text]) for number, text in texts.items()
    )


def search(opened, known, query, k):
    from pgvector.django import CosineDistance

    nearest = opened["Article"].objects.order_by(CosineDistance("embedding", known[query]))
    return [article.body for article in nearest[:k]]


def update(opened, known, number, text):
    article = opened["Article"].objects.get(pk=int(number))
    article.body, article.embedding = text, known[text]
    article.save()


def delete(opened, known, number):
    opened["Article"].objects.filter(pk=int(number)).delete()


def _migrate(operations):
    """Apply them as a migration would, to the state in which the field still has its old dimensions."""
    from django.db import connection, migrations, models
    from django.db.migrations.state import ModelState, ProjectState
    from pgvector.django import VectorField

    state = ProjectState()
    fields = [("id", models.BigAutoField(primary_key=True)), ("embedding", VectorField(dimensions=1536, null=True))]
    state.add_model(ModelState("library", "Article", fields))
    migration = migrations.Migration("0002", "library")
    migration.operations = operations
    with connection.schema_editor() as editor:
        changed = migration.apply(state, editor)
    assert changed.models["library", "article"].fields["embedding"].dimensions == 384


def _database(url):
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.removeprefix("/"),
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname or parse_qs(parts.query).get("host", [""])[0],
        "PORT": str(parts.port or ""),
    }
