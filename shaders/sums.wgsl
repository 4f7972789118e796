{# The lane's share of a sum over its row: `term` for i = lane, lane + lanes, .. below p.width. Parts of 32 terms are added up, so
   that the rounding error of a long row stays that of a short one. #}
{% macro lane_sum(name, T, term) %}
    var {{ name }} = {{ T }}(0.0);
    for (var i = lane; i < p.width;) {
        var part = {{ T }}(0.0);
        for (var k = 0u; k < 32u && i < p.width; k += 1u) {
            part += {{ term }};
            i += lanes;
        }
        {{ name }} += part;
    }
{% endmacro %}
