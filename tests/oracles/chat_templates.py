"""Small chat templates in the styles of model families.

All of them are written for these tests. They keep the marks and the order of
each family's format, and what is odd in its Jinja, but none is a copy of a
template that comes with a model.
"""

CHATML = """\
{% for m in messages %}
{% if loop.first and m.role != 'system' %}
<|im_start|>system
Be helpful.<|im_end|>
{% endif %}
<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name is defined else '' }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if documents %}
<|im_start|>documents
{% for d in documents %}
{{ loop.index }}. {{ d.title }}: {{ d.text }}
{% endfor %}
<|im_end|>
{% endif %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

LLAMA_2 = """\
{%- set turns = messages -%}
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for m in turns -%}
  {%- if (m.role == 'user') != (loop.index0 is divisibleby 2) -%}
    {{- raise_exception('User and assistant must take turns.') -}}
  {%- endif -%}
  {%- if m.role == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ (system if loop.first else '') -}}
    {{- m.content.strip() ~ ' [/INST]' -}}
  {%- elif m.role == 'assistant' -%}
    {{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}
  {%- else -%}
    {{- raise_exception('No role ' ~ m.role) -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
  {%- if strftime_now is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
  {%- else %}
    {%- set date_string = '26 Jul 2024' %}
  {%- endif %}
{%- endif %}
{%- macro head(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}
{%- endmacro %}
{{- head('system') }}
{{- 'Today: ' + date_string + '\\n' }}
{%- if messages[0].role == 'system' %}
  {{- messages[0].content | trim }}
  {%- set messages = messages[1:] %}
{%- endif %}
{%- if tools is not none %}
  {{- '\\nTools:\\n' }}
  {%- for t in tools %}
    {{- t | tojson(indent=4) + '\\n' }}
  {%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for m in messages %}
  {%- if m.tool_calls is defined %}
    {{- head('assistant') }}
    {%- for call in m.tool_calls %}
      {{- '{"name": "' + call.function.name + '", "parameters": ' }}
      {{- call.function.arguments | tojson + '}' }}
    {%- endfor %}
    {{- '<|eom_id|>' }}
  {%- elif m.role in ['tool', 'ipython'] %}
    {{- head('ipython') + m.content | tojson + '<|eot_id|>' }}
  {%- else %}
    {{- head(m.role) + m.content | trim + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- head('assistant') }}
{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(system='', last=-1) %}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {%- set ns.system = m.content + '\\n\\n' %}
  {%- endif %}
  {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in messages %}
  {%- if m.role == 'system' %}{% continue %}{% endif %}
  {%- if m.role == 'user' %}
    {%- if loop.index0 == ns.last and tools %}
      {{- '[AVAILABLE_TOOLS] [' }}
      {%- for t in tools %}
        {{- t | tojson }}{{ '' if loop.last else ', ' }}
      {%- endfor %}
      {{- '][/AVAILABLE_TOOLS]' }}
    {%- endif %}
    {{- '[INST] ' + (ns.system if loop.index0 == ns.last else '') }}
    {{- m.content + '[/INST]' }}
  {%- elif m.tool_calls %}
    {{- '[TOOL_CALLS] [' }}
    {%- for call in m.tool_calls %}
      {{- call.function | tojson }}{{ '' if loop.last else ', ' }}
    {%- endfor %}
    {{- ']' + eos_token }}
  {%- elif m.role == 'tool' %}
    {{- '[TOOL_RESULTS] {"content": ' + m.content | string + '}' }}
    {{- '[/TOOL_RESULTS]' }}
  {%- else %}
    {{- ' ' + m.content + eos_token }}
  {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- set ns = namespace(first='') -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- if messages[0]['content'] is string -%}
    {%- set ns.first = messages[0]['content'] + '\\n\\n' -%}
  {%- else -%}
    {%- set ns.first = messages[0]['content'][0]['text'] + '\\n\\n' -%}
  {%- endif -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
  {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('Turns must alternate.') }}
  {%- endif -%}
  {{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) }}
  {{- '\\n' + (ns.first if loop.first else '') }}
  {%- if m['content'] is string -%}
    {{ m['content'] | trim }}
  {%- elif m['content'] is iterable -%}
    {%- for part in m['content'] -%}
      {%- if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

PHI_3 = """\
{% for m in messages %}{% if m['role'] in ('system', 'user') %}\
{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}\
{% elif m['role'] == 'assistant' %}\
{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}\
{% else %}{{ eos_token }}{% endif %}\
"""

QWEN_3 = """\
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}
    {{- messages[0].content + '\\n\\n' }}
  {%- endif %}
  {{- 'Tools, one a line, in <tools></tools>. Call one in ' }}
  {{- '<tool_call></tool_call>.\\n<tools>' }}
  {%- for t in tools %}
    {{- '\\n' }}{{ t | tojson }}
  {%- endfor %}
  {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
  {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
  {%- set content = m.content if m.content is string else '' %}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
  {%- elif m.role == 'assistant' %}
    {%- set thought = '' %}
    {%- if m.reasoning_content is string %}
      {%- set thought = m.reasoning_content %}
    {%- elif '</think>' in content %}
      {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- generation %}
    {%- if loop.index0 > ns.last and (thought or loop.last) %}
      {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
      {{- content.lstrip('\\n') }}
    {%- else %}
      {{- content }}
    {%- endif %}
    {%- if m.tool_calls %}
      {%- for call in m.tool_calls %}
        {%- if not loop.first or content %}{{ '\\n' }}{% endif %}
        {%- set f = call.function if call.function else call %}
        {{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' }}
        {%- if f.arguments is string %}
          {{- f.arguments }}
        {%- else %}
          {{- f.arguments | tojson }}
        {%- endif %}
        {{- '}\\n</tool_call>' }}
      {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>' }}
    {%- endgeneration %}
    {{- '\\n' }}
  {%- elif m.role == 'tool' %}
    {%- if loop.first or loop.previtem.role != 'tool' %}
      {{- '<|im_start|>user' }}
    {%- endif %}
    {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
    {%- if loop.last or loop.nextitem.role != 'tool' %}
      {{- '<|im_end|>\\n' }}
    {%- endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}
"""

SMOLLM_3 = """\
{%- set day = strftime_now('%d %B %Y') -%}
<|im_start|>system
## Facts

Today: {{ day }}
{%- if messages[0].role == 'system' %}


{{ messages[0].content | trim }}
{%- set messages = messages[1:] %}
{%- endif %}
{%- if tools %}


### Tools
{%- for t in tools %}

{{ t.function | tojson }}
{%- endfor %}
{%- endif %}
<|im_end|>
{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}
{{- '<|im_start|>assistant\\n' }}
{%- if '<think>' not in (m.content or '') %}
  {{- '<think>\\n\\n</think>\\n' }}
{%- endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}
  {{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{% endgeneration %}
{{ '\\n' }}
{%- else %}
<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{% if m.content is string %}
{{ m.content -}}
{% else %}
{{ m.content | map(attribute='text') | join('\\n') -}}
{% endif %}
<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{{ '<think>\\n\\n</think>\\n' }}
{%- endif %}
"""

ZEPHYR = """\
{% for m in messages %}
{% if m.role == 'user' %}
{{ '<|user|>\\n' + m.content + eos_token }}
{% elif m.role == 'system' %}
{{ '<|system|>\\n' + m.content + eos_token }}
{% elif m.role == 'assistant' %}
{{ '<|assistant|>\\n' }}{% generation %}\
{{ m.content + eos_token }}{% endgeneration %}

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
