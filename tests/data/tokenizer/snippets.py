"""Renders small templates, a construct each, with Jinja2 as Hugging Face transformers does, into snippets.json.

    python snippets.py        (needs the PyPI packages jinja2 and transformers 5.24, torch is not needed)

A snippet is rendered with the variables of VARIABLES; where Jinja2 or Python refuses, the error's text is kept.
"""

import json
from datetime import datetime
from pathlib import Path
from unittest import mock

from transformers.utils import chat_template_utils

HERE = Path(__file__).parent

VARIABLES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>\"there\"</b> & it's é…"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5, "y": [True, None]}}}]},
        {"role": "tool", "content": "{\"a\": 1}", "n": 3},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "Does <f>", "parameters": {"type": "object", "properties": {"x": {"type": "number", "enum": [1, 2.0, 1e20, 1e-7]}}, "required": ["x"]}}}],
    "words": ["b", "A", "c", "a", "B"],
    "numbers": [3, 1, 2, 1],
    "deep": {"a": {"b": [1, {"c": "x"}]}, "z": 1, "K": 2, "é": "ü"},
    "name": "World",
    "text": "one two  three\nfour\tfive",
    "nothing": None,
    "yes": True,
    "no": False,
    "big": 12345678901234567890,
    "half": 0.5,
}

TEXT = r"""
{{ 1 }} {{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456789.125 }} {{ 1.5e300 }} {{ 0.1 + 0.2 }} {{ -0.0 }}
{{ true }} {{ none }} {{ True }} {{ None }} {{ undefined_thing }} {{ big }} {{ 0x10 }} {{ 1_000 }} {{ 0b11 }} {{ 0o17 }}
{{ [1, 'a', "b'c", none, true, 1.0, [2], (3,), {'k': 'v'}] }}
{{ (1, 2) }} {{ (1,) }} {{ () }} {{ {} }} {{ [] }} {{ {'a': 1, 2: [none]} }}
{{ 'a\nb' }} {{ ['a\nb\t\\ \x00 é \u200b 😀'] }} {{ ["it's \"so\""] }} {{ ['"'] }}
{{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ 4 / 2 }}
{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 1 - 2 - 3 }} {{ 1 ~ 2 + 3 }} {{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] }}
{{ 'a' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }} {{ true + 1 }}
{{ 'x' + 1 }}
{{ 1 + 'x' }}
{{ none + 1 }}
{{ [] + () }}
{{ undefined_thing + 1 }}
{{ undefined_thing.x }}
{{ messages[0].nope }}|{{ messages[0].nope is defined }}|{{ messages[9] is defined }}|{{ messages[-1].role }}
{{ messages[0].nope.deeper }}
{{ nothing.x }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1.0 % 0 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'a' == 1 }} {{ none == none }} {{ (1,) == [1] }} {{ {'a': 1} == {'a': 1.0} }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ 1 in [1, 2] }} {{ 'a' in {'a': 1} }} {{ 2 in (1,) }} {{ not 1 in [1] }}
{{ 1 in 'abc' }}
{{ 1 in 2 }}
{{ 1 and 2 }} {{ 0 or 'x' }} {{ not none }} {{ '' or none or [] }} {{ 0 and undefined_thing.x }} {{ not 0 and 1 }}
{{ 'a' if yes else 'b' }} {{ 'a' if no }} {{ ('a' if no) is undefined }} {{ 'a' if no else 'b' if yes else 'c' }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 'abc'[:-1] }} {{ 'abcdef'[1:5:2] }} {{ [1,2,3][::2] }} {{ (1,2,3)[1:] }} {{ messages[1:][0].role }} {{ 'héé'[1:2] }} {{ [1,2,3][5:] }} {{ [1,2,3][-2:] }}
{{ words[10] }}|{{ words['x'] }}|{{ 'abc'[7] }}
{{ deep.a.b[1].c }} {{ deep['a']['b'][0] }} {{ deep.é }} {{ deep['é'] }} {{ messages.0.role }}
{{ deep.items() | list }}
{{ deep.keys() }} {{ deep.values() | list | length }} {{ deep.items() }}
{{ {'items': 1}.items is callable }} {{ {'items': 1}['items'] }} {{ {'get': 5}.get('get') }}
{{ deep.get('q') }} {{ deep.get('q', 7) }} {{ deep.get('z') }}
{{ words.append('x') }}
{{ deep.update({'a': 1}) }}
{{ words.index('c') }} {{ words.count('a') }}
{{ words.index('zz') }}
{{ 'Hello World'.lower() }} {{ 'ß'.upper() }} {{ 'hello world'.title() }} {{ "it's ok".title() }} {{ 'hello'.capitalize() }} {{ 'HeLLo'.swapcase() }} {{ 'Straße'.casefold() }}
{{ '  a b  '.strip() }}|{{ '  a '.lstrip() }}|{{ ' a  '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.lstrip('ab') }}|{{ 'abcba'.rstrip('ab') }}
{{ 'a b  c'.split() }} {{ 'a b  c'.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'a b c'.split(none, 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a  b c '.split(maxsplit=1) }}
{{ 'abc'.split('') }}
{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }} {{ ''.splitlines() }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }}
{{ 'abcabc'.find('c') }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('a') }} {{ 'abc'.find('x') }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('aa') }} {{ 'abc'.index('c') }} {{ 'abcabc'.find('a', 1, 3) }} {{ 'abc'.count('') }} {{ 'héllo'.find('l') }}
{{ 'abc'.index('x') }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith(('x', 'y')) }}
{{ 'abc'.startswith(1) }}
{{ 'aXbX'.replace('X', '-') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'ab'.replace('', '.') }} {{ 'aaa'.replace('aa', 'b') }} {{ 'abc'.replace('b', '') }}
{{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ ''.join([]) }}
{{ ', '.join([1]) }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}
{{ 'a'.center(5, '*') }}|{{ 'ab'.center(5) }}|{{ 'a'.ljust(3, '.') }}|{{ 'a'.rjust(3) }}|{{ '-5'.zfill(4) }}|{{ 'abc'.center(6, '-') }}
{{ 'a\tb'.expandtabs(4) }} {{ 'abc'.isalpha() }} {{ 'ab1'.isalnum() }} {{ '12'.isdigit() }} {{ '½'.isnumeric() }} {{ '²'.isdigit() }} {{ '٣'.isdecimal() }} {{ 'aB'.islower() }} {{ 'AB1'.isupper() }} {{ ' \t'.isspace() }} {{ ''.isspace() }} {{ 'Ab Cd'.istitle() }} {{ 'a_1'.isidentifier() }} {{ 'é'.isascii() }} {{ 'a\n'.isprintable() }}
{{ '{} {}'.format('a', 1) }} {{ '{1} {0}'.format('a', 'b') }} {{ '{x} {y[0]} {z.role}'.format(x=1, y=[2], z=messages[0]) }} {{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:#x}|{:e}|{:%}|{:+d}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255, 255, 12345.678, 0.25, 3) }} {{ '{!r} {!s:>4}'.format('a', 'b') }} {{ '{{}}'.format() }} {{ '{:{}}'.format('x', 4) }} {{ '{:*^7}'.format('x') }} {{ '{:g} {:g} {:g}'.format(0.0001, 1e10, 3.0) }}
{{ '{}'.format() }}
{{ '{x}'.format(y=1) }}
{{ '{'.format() }}
{{ '%s' % 'a' }} {{ '%s-%s' % ('a', 1) }} {{ '%d' % 3.7 }} {{ '%5.2f|%-5s|%05d|%x|%X|%o|%e|%g|%r|%c|%%' % (3.14159, 'ab', 42, 255, 255, 8, 12345.678, 0.0001, 'q', 65) }} {{ '%(a)s %(b)03d' % {'a': 'x', 'b': 7} }} {{ '%+d % d' % (5, 5) }} {{ '%*d' % (5, 42) }} {{ '%.3s' % 'abcdef' }} {{ '%s' % [1, 'a'] }} {{ '%s' % none }}
{{ '%d' % 'a' }}
{{ '%s %s' % ('a',) }}
{{ '%s' % ('a', 'b') }}
{{ 'x' % 1 }}
{{ '%q' % 1 }}
{{ 5 % 3 }} {{ 'a%sb' % 'X' ~ '!' }}
{{ words | join(', ') }} {{ words | join }} {{ numbers | join('-') }} {{ messages | join('|', attribute='role') }} {{ [1, none, true] | join('+') }}
{{ words | sort | join }} {{ words | sort(reverse=true) | join }} {{ words | sort(case_sensitive=true) | join }} {{ numbers | sort }} {{ messages | sort(attribute='role') | map(attribute='role') | join(',') }}
{{ [1, 'a'] | sort }}
{{ words | first }} {{ words | last }} {{ [] | first }}|{{ [] | last }}|{{ 'abc' | first }} {{ 'abc' | last }}
{{ words | length }} {{ 'héé' | length }} {{ deep | length }} {{ words | count }} {{ undefined_thing | length }}
{{ 5 | length }}
{{ nothing | length }}
{{ words | unique | join }} {{ numbers | unique | list }} {{ words | unique(case_sensitive=true) | join }}
{{ numbers | sum }} {{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }} {{ [[1], [2]] | sum(start=[]) }} {{ [] | sum }} {{ [0.5, 1] | sum }}
{{ numbers | max }} {{ numbers | min }} {{ words | max }} {{ words | min(case_sensitive=true) }} {{ [] | max }}|{{ messages | max(attribute='role') | length }}
{{ words | map('upper') | join }} {{ messages | map(attribute='role') | list }} {{ messages | map(attribute='nope', default='-') | join }} {{ ['1', '2'] | map('int') | sum }} {{ [' a '] | map('trim') | list }} {{ words | map('replace', 'a', 'x') | join }} {{ deep | map('upper') | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list }} {{ messages | selectattr('tool_calls') | list | length }} {{ messages | selectattr('n', 'defined') | list | length }} {{ messages | selectattr('role', 'in', ['user', 'tool']) | list | length }}
{{ numbers | select('odd') | list }} {{ numbers | reject('odd') | list }} {{ [0, 1, '', 'a'] | select | list }} {{ numbers | select('gt', 1) | list }} {{ numbers | select('divisibleby', 2) | list }}
{{ messages | selectattr('role', 'eq', 'nobody') | first is defined }} {% if messages | selectattr('role', 'eq', 'nobody') %}generator is true{% endif %}
{{ numbers | map('string') | length }}
{{ [1,2,3,4,5] | batch(2) | list }} {{ [1,2,3] | batch(2, 'x') | list }} {{ [1,2,3,4,5] | slice(2) | list }} {{ [1,2,3] | slice(2, 'x') | list }}
{{ words | groupby('upper') | list | length }} {% for role, group in messages | groupby('role') %}{{ role }}:{{ group | length }} {% endfor %}
{{ deep | dictsort | map('first') | list }} {{ {'b': 1, 'A': 2} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }} {{ deep | items | list | length }}
{{ words | reverse | list }} {{ 'abc' | reverse }} {{ words | reverse | join }}
{{ words | list }} {{ 'abc' | list }} {{ deep | list }} {{ range(3) | list }}
{{ 'x' | default('d') }} {{ undefined_thing | default('d') }} {{ none | default('d') }} {{ '' | default('d', true) }} {{ none | d('e', boolean=true) }} {{ undefined_thing | default }}|
{{ 'x' | int }} {{ '42' | int }} {{ '42.7' | int }} {{ 3.9 | int }} {{ 'x' | int(7) }} {{ '0x1f' | int(base=16) }} {{ 'ff' | int(0, 16) }} {{ true | int }} {{ none | int }} {{ ' 12 ' | int }} {{ '-5' | int }}
{{ '3.5' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 2 | float }} {{ 'inf' | float }} {{ '1e3' | float }}
{{ -3 | abs }} {{ (-3.5) | abs }} {{ (-3) | abs }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 3.14159 | round(2) }} {{ 2.675 | round(2) }} {{ 3.1 | round(method='ceil') }} {{ 3.9 | round(0, 'floor') }} {{ 42 | round }} {{ 1234 | round(-2) }} {{ 2.5 | round | int }}
{{ 'Hello' | lower }} {{ 'Hello' | upper }} {{ 'hello world-foo (bar)' | title }} {{ 'HELLO there' | capitalize }} {{ '  x ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 5 | upper }} {{ none | string }} {{ [1, 'a'] | string }} {{ 1.0 | string | length }}
{{ 'a b c' | replace(' ', '_') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 123 | replace('2', 'x') }} {{ 'abc' | replace('b', 5) }}
{{ 'a\nb\n\nc' | indent }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }} {{ 'a\nb' | indent('> ') }}
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11) }} {{ 'foo bar baz qux' | truncate(9, false, '…', 0) }}
{{ 'a <b> & "c" \'d\'' | e }} {{ '<' | escape }} {{ '<b>x</b>  y' | striptags }} {{ '<x>' | safe }}
{{ 'a b, c-d e_f' | wordcount }} {{ 'the quick brown fox' | wordwrap(10) }} {{ 'abcdefghij' | wordwrap(4) }} {{ 'well-known words' | wordwrap(6) }}
{{ 'x' | center(5) }}| {{ '%s is %d' | format('a', 3) }} {{ '%(x)s' | format(x=1) }} {{ 1000 | filesizeformat }} {{ 1 | filesizeformat }} {{ 123456789 | filesizeformat(true) }} {{ 'a b/c?é' | urlencode }} {{ {'a': 'b c'} | urlencode }} {{ {'class': 'x', 'id': none} | xmlattr }}
{{ deep | tojson }} {{ messages | tojson }}
{{ tools | tojson(indent=2) }}
{{ {'b': 1, 'a': [1, 2]} | tojson(sort_keys=true, separators=(',', ':')) }} {{ 'é\u2028' | tojson(ensure_ascii=true) }} {{ '\x7f' | tojson }} {{ [1, 2] | tojson(indent='\t') }} {{ [] | tojson(indent=2) }} {{ {} | tojson }} {{ (1, 2) | tojson }} {{ {1: 2, none: 3, true: 4} | tojson }} {{ 1e16 | tojson }} {{ 'inf' | float | tojson }} {{ '</script>' | tojson }}
{{ undefined_thing | tojson }}
{{ deep.items() | tojson }}
{{ words | map('upper') | tojson }}
{{ words | nofilter }}
{{ words is notest }}
{{ 'x' is string }} {{ 1 is string }} {{ 1 is number }} {{ 1.0 is number }} {{ true is number }} {{ true is integer }} {{ 1 is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ true is boolean }} {{ 1 is boolean }} {{ none is none }} {{ deep is mapping }} {{ words is mapping }} {{ 'x' is sequence }} {{ words is sequence }} {{ deep is sequence }} {{ 5 is sequence }} {{ words is iterable }} {{ 5 is iterable }} {{ 'x' is iterable }} {{ none is iterable }} {{ undefined_thing is iterable }} {{ undefined_thing is sequence }}
{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 'a' is lower }} {{ 'A' is upper }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 1 is lt 2 }} {{ 2 is ge 2 }} {{ 2 is gt 3 }} {{ 2 is lessthan 3 }} {{ 1 is in [1] }} {{ 1 is sameas 1 }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ range is callable }} {{ 'upper' is filter }} {{ 'odd' is test }} {{ 1 is not none }} {{ none is not none }} {{ 1 is equalto 1.0 }} {{ 'x' is escaped }} {{ not 1 is odd }}
{{ 'a' is odd }}
{{ range(5) }} {{ range(1, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3)[1] }} {{ range(0) | list }} {{ range(4) | length }}
{{ range(1000000) }}
{{ range(1, 2, 0) }}
{{ dict(a=1, b='x') }} {{ dict([('a', 1)]) }} {{ dict({'x': 1}, y=2) }}
{% set ns = namespace(x=1, y='a') %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }} {{ ns.y }} {{ ns.z is defined }}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set x = 1 %}{% set x.y = 2 %}
{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (c, d) = (3, 4) %}{{ c }}{{ d }} {% set t = 1, %}{{ t }}
{% set a, b = 1, 2, 3 %}
{% set a, b = 1, %}
{% set x %}a{{ 1 }}b{% endset %}{{ x }} {% set x | upper | replace('A', 'z') %}abc{% endset %}{{ x }}
{% with a=1, b=2 %}{{ a + b }}{% endwith %}{{ a is defined }} {% set a = 5 %}{% with a = a + 1 %}{{ a }}{% endwith %}{{ a }}
{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}
{% for x in [1, 2, 3] %}{{ loop.previtem }}|{{ loop.nextitem }}|{{ loop.cycle('a', 'b') }}|{{ loop.depth }}{{ loop.depth0 }} {% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }} {% endfor %}
{% for x in [1, 2, 3] if x is odd %}{{ x }}/{{ loop.length }} {% else %}none{% endfor %} {% for x in [] %}x{% else %}empty{% endfor %}
{% for k, v in deep.items() %}{{ k }}={{ v }};{% endfor %} {% for k in deep %}{{ k }}{% endfor %} {% for c in 'abc' %}{{ c }}-{% endfor %}
{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }} {% endfor %} {% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in nothing %}{% endfor %}
{% for x in undefined_thing %}x{% else %}empty{% endfor %}
{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for x in [1, 2] %}{% for y in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}
{% macro f(a, b=2, c='x') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(1, c=5) }} {{ f(b=1, a=0) }} {{ f() }}
{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, x=4) }} {{ f.name }} {{ f.arguments }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}
{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}x{% endcall %} {% macro g() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) g() %}{{ a + b }}{% endcall %}
{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(5) }}
{% macro f(x=y) %}{{ x }}{% endmacro %}{% set y = 3 %}{{ f() }}
{% macro f(l) %}{% for i in l %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}{% endmacro %}{{ f([1, 2]) }}{{ f(l=[3]) }}
{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{{ inner(2) }}{% endmacro %}{{ outer() }}
{% set f = 5 %}{{ f() }}
{{ undefined_thing() }}
{{ 'a'.nope() }}
{{ messages.nope() }}
{% filter upper %}abc {{ name }}{% endfilter %} {% filter replace('a', 'b') | upper %}aXa{% endfilter %}
{% raw %}{{ x }} {% if %}{% endraw %}!
{# comment {{ x }} #}a{#- b -#} c
{% generation %}inside{{ 1 }}{% endgeneration %} after
{% block title %}in a block{% endblock %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }} {% set j = joiner('|') %}{{ j() }}a{{ j() }}b
{{ raise_exception('No ' ~ name) }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %B %a %A %j %y %I %p %-d %e %U %w %u %V %G %F %T %D %%') }}
{{ 'a' 'b' }} {{ "x" ~ 'y' "z" }}
{{ messages[1].content | length }} {{ messages[1]['content'] }} {{ messages[1]["role"] | upper }}
{{ f(x=1, 2) }}
{{ a.b.c is defined }}
{{ 1 is odd is true }}
{% if x = 1 %}{% endif %}
{% for %}{% endfor %}
{% if true %}
{% endif %}
{% unknown %}
{{ }}
{{ 'abc }}
{{ [1, 2 }}
{{ {1: 2} }}{{ {'a': {'b': 1}}.a.b }}
{{ {'a': 1}.a }} {{ {'a': 1}['a'] }} {{ {'a': 1, }.a }} {{ [1, ][0] }} {{ dict(a=1).a }}
{{ {[1]: 2} }}
{{ name._private }}
{{ ''.__class__ }}
{{ (name | attr('upper'))() }}
{{ name | attr('nope') }}
{{ deep | attr('z') }}|
{{ not no }} {{ not (no or yes) }} {{ no is not true }}
{{ 5 if 3 > 2 else 6 }} {{ (1 if no else 2) + 1 }} {{ 1 + (2 if yes else 3) * 2 }}
{{ -1 | abs }} {{ -words | length }}
{{ 'x' is in 'xyz' }} {{ 'q' is not in 'xyz' }}
{{ 3.0 is integer }} {{ 3.0 == 3 }} {{ 10 // 3.0 }} {{ 2 ** 0.5 }} {{ 1e308 * 10 }} {{ 7 // -2 }} {{ -7 // 2.0 }}
{{ true and 'yes' or 'no' }} {{ '' and 'yes' or 'no' }}
{{ words[1:3] }} {{ words[:2] | join }} {{ words[-2:] }} {{ text[:3] }} {{ text[::-1][:4] }}
{{ half }} {{ half | round }} {{ (half * 3) | int }} {{ half is float }}
{{ (5).real }} {{ 5.0.is_integer() }} {{ (255).bit_length() }}
{{ text.split('\n')[0].split() | length }} {{ text | wordcount }} {{ text.split() | join(' ') }}
{{ ("a", "b") | first }} {{ (1, 2) | sum }} {{ ("a",) ~ "" }}
{{ messages | length > 3 }} {{ messages | map(attribute='role') | unique | list }}
{{ 1 if messages[0]['role'] == 'system' else 0 }} {% if messages[0].role == 'system' and messages[0].content %}sys{% endif %}
{{ messages[3].content | tojson }} {{ messages[4].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') }}
{% for m in messages %}{% if m.content is string %}S{% elif m.content is none %}N{% elif m.content is iterable %}I{% endif %}{% endfor %}
{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m.role[0] }}{% endfor %}
{% set last = messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last %}{{ last[0].text }}
{% set ns = namespace(found=false) %}{% for m in messages[::-1] %}{% if not ns.found and m.role == 'user' %}{% set ns.found = true %}{{ loop.index0 }}{% endif %}{% endfor %}
{{ messages[2].tool_calls[0].function.arguments | tojson }} {{ messages[2].tool_calls[0].function.arguments }} {% for k, v in messages[2].tool_calls[0].function.arguments | items %}{{ k }}:{{ v | tojson }} {% endfor %}
{% for k, v in nothing | items %}{% endfor %}
{%- set x = 'trim' -%}   {{- x -}}   !
{{ '' ~ undefined_thing ~ 'x' }} {{ [undefined_thing] }} {{ undefined_thing == undefined_thing }} {{ undefined_thing is undefined }} {{ not undefined_thing }}
{{ undefined_thing < 1 }}
{{ undefined_thing | upper }}| {{ undefined_thing | list }} {{ undefined_thing | join }} {{ undefined_thing | default(1) + 1 }}
{{ undefined_thing | int }}
{{ undefined_thing[0] }}
{{ 'a' | map('upper') | list }} {{ none | default('x', true) | upper }} {{ '%.1f' | format(2.25) }} {{ '%.0f' % 0.5 }} {{ '{:.1f}'.format(0.25) }} {{ '{:.3g}'.format(1234.5) }}
{{ loop is defined }} {{ caller is defined }} {{ varargs is defined }} {{ self is defined }}
{{ 'İ'.lower() | length }} {{ 'ǆ'.title() }} {{ 'ŉ'.upper() }} {{ 'Σ'.lower() }} {{ 'ΑΣ'.lower() }}
{{ messages[0] | length }} {{ messages[0] | list }} {{ messages[0].items() | list }} {{ messages[0] | dictsort }}
{{ [3, 1] | sort | first }} {{ {'a': [1, 2]}.a | last }} {{ [[1, 2], [3]] | map('length') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [[5, 6]] | map(attribute=1) | list }} {{ [[5, 6]] | map(attribute='0') | list }}
"""

# Whole texts, in which line ends and blanks matter.
WHOLE = [
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "a\rb\r{% if true %}\rc{% endif %}",
    "  {% if true %}  \n  x\n  {% endif %}\ny",
    "  {%- if true -%}  \n  x  \n  {%- endif -%}  \ny",
    "  {%+ if true +%}\n  x\n  {%+ endif +%}\ny",
    "a {# c #}\nb\n  {# d #}\nc",
    "a\n  {#- d -#}\n c",
    "x\n\n\n",
    "x\n\n",
    "{{ 'a' }}\n{{ 'b' }}\n",
    "  {{ 'a' }}  \n",
    "{{- 'a' -}}  \n  b",
    "{% for x in [1, 2] %}\n  {{ x }}\n{% endfor %}\nend",
    "{% for x in [1, 2] -%}\n  {{ x }}\n{%- endfor %}\nend",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nend",
    "{%- raw -%}  a  {%- endraw -%}  b",
    "\t{% set x = 1 %}\t\n{{ x }}",
    "a{% if true %}\n\nb{% endif %}",
    "{% macro f() %}\n  x\n{% endmacro %}\n[{{ f() }}]",
    "{% set x %}\n a\n{% endset %}[{{ x }}]",
    "{{ {'a': {'b': 1}} }}",
    "{{ '}}' }}{{ '%}' }}{% set x = '%}' %}{{ x }}",
    "{#",
    "{# a",
    "{{",
    "{% ",
    "{% raw %} a",
    "a {{ 1 }",
    "{",
    "{ {",
    "é{{ 'ü' }}",
    "{{ 1 }}{# a #}{# b #}\n{{ 2 }}",
    "\n\n{% if true %}\n{{ 1 }}\n{% endif %}\n\n",
    "{% if true %}a{% endif %}   {% if true %}b{% endif %}\n   {% if true %}c{% endif %}",
    "{%if true%}x{%endif%}{{1}}{{-2-}} y",
    "{% for a in [1] %}{% for b in [2] %}\n    {{ a }}{{ b }}\n    {% endfor %}\n{% endfor %}",
    "{% call(x) f(1) %}{% endcall %}",
    "{{ 'multi\nline' }}",
    "{% set x = [\n  1,\n  2\n] %}{{ x }}",
    "line1\n{% include 'x' %}",
    "a\u00a0{% if true %}b{% endif %}\n\u00a0{% if true %}c{% endif %}",
]


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2024, 2, 5, 9, 7, 3)


def render(template):
    try:
        with mock.patch.object(chat_template_utils, "datetime", Frozen):
            return {"template": template, "text": chat_template_utils._compile_jinja_template(template).render(**VARIABLES)}
    except Exception as e:  # whatever Jinja2 and Python refuse
        return {"template": template, "error": f"{type(e).__name__}: {e}"}


def lines():
    """A line a case; where one of several expressions is refused, each of them by itself."""
    for line in TEXT.strip("\n").split("\n"):
        parts = line.replace(" {{", "\0{{").split("\0")
        if "error" in render(line) and len(parts) > 1 and "{%" not in line:
            yield from parts
        else:
            yield line


cases = [render(t) for t in [*lines(), *WHOLE]]
out = {"variables": VARIABLES, "cases": cases}
(HERE / "snippets.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
print(len(cases), "snippets,", sum("error" in c for c in cases), "of them errors")
