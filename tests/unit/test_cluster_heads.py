"""The head of a `ray up` cluster can start workers: the images have what Ray's autoscaler imports and calls there.

Ray's autoscaler runs in the head's container. It asks the provider for machines from there, and sets them up by
programs that it calls from there. Ray's own defaults install the providers' clients when a head starts; ours are in
the image.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from cluster_files import DOCKERFILES, RAY_UP, read, read_yaml, setup_cfg

AUTOSCALER = "ray.autoscaler._private"
# Where a distribution has another name than what is imported of it.
DISTRIBUTIONS = {"botocore": "boto3", "googleapiclient": "google-api-python-client", "google": "google-auth"}
PACKAGES_OF_DEBIAN = {"ssh": "openssh-client", "rsync": "rsync"}


def sources_of(package: str) -> list[ast.Module]:
    """The syntax trees of a module of Ray's autoscaler, or of all modules of a package."""
    spec = importlib.util.find_spec(f"{AUTOSCALER}.{package}")
    assert spec and spec.origin
    path = Path(spec.origin)
    paths = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def imported(package: str) -> set[str]:
    """What a part of Ray's autoscaler imports that is neither Python's own nor Ray's."""
    names: set[str] = set()
    for tree in sources_of(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"ray"}


def names_of_requirements(text: str) -> set[str]:
    return set(re.findall(r"^([A-Za-z0-9_.-]+)", text.replace(" ", ""), re.M))


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_an_image_has_what_the_autoscaler_of_a_head_imports(provider: str) -> None:
    comes_with_ray = {"packaging", "filelock", "click", "yaml", "jsonschema", "requests"}
    wanted = {module for part in (provider, "util") for module in imported(part)} - comes_with_ray
    # Optional in Ray: what it takes for a console, and tells without.
    wanted -= {"colorama", "colorful"}
    assert wanted >= {"aws": {"boto3"}, "gcp": {"googleapiclient", "httplib2"}, "local": set()}[provider]
    named = names_of_requirements(setup_cfg()["options.extras_require"]["ray_up"])
    assert {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in wanted} - named == set()


def programs_of_the_autoscaler() -> set[str]:
    """The programs with which Ray sets up a node from the head: the first words of the commands that it builds."""
    lists = (node for tree in sources_of("command_runner") for node in ast.walk(tree) if isinstance(node, ast.List))
    firsts = (node.elts[0] for node in lists if node.elts)
    return {node.value for node in firsts if isinstance(node, ast.Constant)} & {"ssh", "rsync", "scp"} - {"scp"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_the_programs_with_which_a_head_sets_up_workers(name: str) -> None:
    programs = programs_of_the_autoscaler()
    assert programs == {"ssh", "rsync"}
    installed = re.search(r"apt-get install -y --no-install-recommends(.*?)&&", read(name), re.S)
    assert installed and {PACKAGES_OF_DEBIAN[program] for program in programs} <= set(installed[1].split())


def test_no_head_installs_what_its_image_has() -> None:
    """Ray's defaults install the clients of clouds when a head starts; ours are in the image, at tested versions."""
    for name in RAY_UP:
        assert read_yaml(name).get("head_setup_commands", []) == []


def test_a_head_on_aws_can_start_workers_with_the_role_that_ray_makes() -> None:
    """`resolve:ssm:` needs ssm:GetParameters of whoever starts a machine, and that role has no such right."""
    text = read("aws.yaml")
    images = re.findall(r"ImageId: (.*)", text)
    assert images and all(re.fullmatch(r"ami-0{17} +# <<<", image) for image in images)
    # `aws ssm get-parameter` prints the identifier, and a role of your own needs as much as Ray's.
    assert "aws ssm get-parameter --region us-west-2" in text and "iam:PassRole" in text
