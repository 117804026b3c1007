"""LanceDB without the HTTP client of a service that nobody here talks to."""

import subprocess
import sys


def python(code):
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_the_store_is_imported_without_the_client():
    assert (
        python(
            "import sys, mesh.adapters.lance\n"
            "print(*[name for name in sys.modules if '_urllib3_client.api.' in name])"
        )
        == []
    )


def test_whoever_wants_the_client_gets_it():
    assert python(
        "import mesh.adapters.lance, lance_namespace_urllib3_client as client\n"
        "print(client.TableApi.__name__, client.__version__ > '0', hasattr(client, 'nonsense'))"
    ) == ["TableApi", "True", "False"]
