"""Templates: strict, bounded, and every mistake names file, line, node and key."""

import time

import pytest
from repo_of import app, compiled, doc, files, mistakes

from edgewise.sync import templates


def config(content: str) -> dict[str, str]:
    body = "".join(f"      {line}\n" for line in content.splitlines())
    return files(
        configs_site=doc("Config", "site", f"files:\n  - path: /etc/x\n    content: |\n{body}")
    )


def test_a_missing_label_names_file_line_node_and_the_label_that_was_meant() -> None:
    (problem,) = mistakes(config("a=1\nb={{ node.labels.regoin }}\n"))
    assert problem == (
        "configs/site.yaml:9:1: spec.files[0].content: node.labels.regoin is missing "
        "(node n-1 and 2 more) (did you mean 'region'?)"
    )


def test_a_missing_variable_names_the_one_that_was_meant() -> None:
    repo = files(
        apps_hello=app(more='env: {URL: "{{ vars.mqtt_hots }}"}'),
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            "vars: {mqtt_host: x}\napps: [{ref: {name: hello}}]",
        ),
    )
    (problem,) = mistakes(repo)
    assert "spec.env.URL: vars.mqtt_hots is missing (node n-1 and 2 more)" in problem
    assert "did you mean 'mqtt_host'?" in problem
    assert problem.startswith("apps/hello.yaml:8:14:")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "pow is not accepted"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "1,000,000,000 rounds"),
        (
            "{% for i in range(999) %}{% for j in range(999) %}x{% endfor %}{% endfor %}",
            "loops inside loops",
        ),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "loops inside loops"),
        ("{{ 'x' * 1000000000 }}", "numbers only"),
        ("{{ '%1000000000d' % 1 }}", "numbers only"),
        ("{{ 999999999999 * 999999999999 }}", "too large"),
        ("{{ '{:1000000000}'.format(1) }}", "calls are not accepted"),
        ("{{ ''.__class__ }}", ""),
        ("{{ node.__class__ }}", "is not known"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "is not accepted"),
        ("{% set x = 'a' %}", "assign is not accepted"),
        ("{% include '/etc/passwd' %}", "is not accepted"),
        ("{{ lipsum() }}", "calls are not accepted"),
        ("{{ cycler }}", "'cycler' is not known"),
        ("{{ hostname }}", "did you mean vars.hostname?"),
        ("{{ node.nmae }}", "did you mean 'name'?"),
        ("{{ vars.x | deflaut('a') }}", "did you mean 'default'?"),
        ("{{ 'a' | center(1000000000) }}", "No filter named 'center'"),
        ("{{ unclosed", "template:"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ 'a' }}" * 20_000, "at most 65,536 are rendered"),
        ("{{ 1 // 0 }}", "template:"),
        ("{{ node.labels }}", "name one of its values"),
        ("{% for i in range(1000) %}{{ '" + "x" * 7000 + "' }}{% endfor %}", "characters"),
    ],
    ids=lambda value: value[:30] if "{" in value else None,
)
def test_a_template_that_would_never_end_or_reach_out_ends_in_a_clear_error(
    source: str, says: str
) -> None:
    began = time.process_time()
    names = templates.Names("node", lambda _: None, lambda: ["name", "labels"])
    labels = templates.Names("node.labels", lambda _: None, lambda: [])
    node = templates.Names("node", {"labels": labels, "name": "n"}.get, lambda: [])
    with pytest.raises(templates.Mistake) as caught:
        templates.render(source, {"node": node, "vars": names, "fleet": names})
    assert says in f"{caught.value.message} {caught.value.hint}"
    assert time.process_time() - began < 5


def test_loops_conditions_and_filters_of_the_short_list_work() -> None:
    repo = config(
        "{% for i in range(3) %}\nline {{ i }}\n{% endfor %}\n"
        "{% if node.labels.ring == 'canary' %}\ncanary\n{% endif %}\n"
        "{{ vars.hosts | default('a,b') | split(',') | join(' ') | upper }}\n"
        "{{ 'site' in node.labels }} {{ node.labels.site | default('none') | quote }}"
    )
    fleet = compiled(repo).fleets["pos"]
    texts = [d.decode() for d in fleet.documents.values() if b'"path":"/etc/x"' in d]
    assert len(texts) == 2
    assert "line 0\\nline 1\\nline 2\\ncanary\\nA B\\nFalse none" in "".join(texts)


def test_a_text_that_is_no_template_can_say_so() -> None:
    spec = "files:\n  - {path: /etc/x, content: '{{ consul }}', template: false}"
    fleet = compiled(files(configs_site=doc("Config", "site", spec))).fleets["pos"]
    assert any(b"{{ consul }}" in d for d in fleet.documents.values())


def test_variables_that_refer_to_each_other_in_a_circle_are_an_error() -> None:
    repo = files(
        fleets_pos=doc(
            "Fleet",
            "pos",
            "selector: {matchLabels: {type: pos}}\n"
            'vars: {a: "{{ vars.b }}", b: "{{ vars.a }}"}\napps: [{ref: {name: hello}}]',
        ),
        apps_hello=app(more='env: {A: "{{ vars.a }}"}'),
    )
    (problem,) = mistakes(repo)
    assert "vars refer to each other: a -> b -> a" in problem


def test_a_rendered_path_cannot_climb() -> None:
    spec = 'files:\n  - {path: "/etc/{{ vars.up }}/x", content: a}'
    fleet = doc(
        "Fleet",
        "pos",
        "selector: {matchLabels: {type: pos}}\nvars: {up: ..}\nconfigs: [{ref: {name: site}}]",
    )
    (problem,) = mistakes(files(configs_site=doc("Config", "site", spec), fleets_pos=fleet))
    assert "path '/etc/../x' has '..'" in problem
