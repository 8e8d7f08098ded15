# Draws lines as SVG.
#
# {title, x, y, series: [{label, points: [[x, y], ...], step: false}]} | picture
#
# Axes begin at zero. `step`: a value holds until the next one.

def colours: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

def escaped: gsub("&"; "&amp;") | gsub("<"; "&lt;") | gsub(">"; "&gt;");

# A round number of about a fifth of the input.
def step_of:
    if . <= 0 then 1 else
        (. / 5) as $raw
        | pow(10; ($raw | log10 | floor)) as $ten
        | ([1, 2, 5, 10] | map(. * $ten) | map(select(. >= $raw * 0.999)) | .[0])
    end;

def number:
    if . == 0 then "0"
    elif fabs >= 10 then (. * 10 | round / 10 | tostring)
    else (. * 1000 | round / 1000 | tostring)
    end;

def text($x; $y; $anchor; $size; $more):
    "<text x=\"\($x)\" y=\"\($y)\" text-anchor=\"\($anchor)\" font-size=\"\($size)\" \($more)>"
    + (tostring | escaped) + "</text>";

def picture:
    . as $plot
    | {left: 80, right: 860, top: 90, bottom: 440} as $box
    | [.series[].points[][0]] as $xs
    | [.series[].points[][1]] as $ys
    | (($xs | max // 1) | if . > 0 then . else 1 end) as $x_max
    | (($ys | max // 1) | if . > 0 then . * 1.08 else 1 end) as $y_max
    | def at_x: $box.left + . / $x_max * ($box.right - $box.left) | . * 10 | round / 10;
      def at_y: $box.bottom - . / $y_max * ($box.bottom - $box.top) | . * 10 | round / 10;
      def path($stepped):
          . as $points
          | reduce range(length) as $i (""; . + (
                if $i == 0 then "M\($points[0][0] | at_x) \($points[0][1] | at_y)"
                elif $stepped then " H\($points[$i][0] | at_x) V\($points[$i][1] | at_y)"
                else " L\($points[$i][0] | at_x) \($points[$i][1] | at_y)"
                end));
      ($x_max | step_of) as $dx
    | ($y_max | step_of) as $dy
    | [
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"500\" "
        + "viewBox=\"0 0 900 500\" font-family=\"sans-serif\" fill=\"#282828\">",
        "<rect width=\"900\" height=\"500\" fill=\"white\"/>",
        ($plot.title | text(20; 30; "start"; 18; "")),
        (range(0; $x_max * 1.0001; $dx) | . as $x
            | "<path d=\"M\(at_x) \($box.top)V\($box.bottom)\" stroke=\"#e1e1e1\"/>",
              ($x | number | text($x | at_x; $box.bottom + 20; "middle"; 13; ""))),
        (range(0; $y_max * 1.0001; $dy) | . as $y
            | "<path d=\"M\($box.left) \(at_y)H\($box.right)\" stroke=\"#e1e1e1\"/>",
              ($y | number | text($box.left - 8; ($y | at_y) + 4; "end"; 13; ""))),
        "<path d=\"M\($box.left) \($box.top)V\($box.bottom)H\($box.right)\" fill=\"none\" "
        + "stroke=\"#808080\"/>",
        ($plot.x | text(($box.left + $box.right) / 2; 482; "middle"; 14; "")),
        ($plot.y | text(0; 0; "middle"; 14;
            "transform=\"translate(24 \(($box.top + $box.bottom) / 2)) rotate(-90)\"")),
        ($plot.series | to_entries[] | .key as $i | .value as $series
            | colours[$i % 6] as $colour
            | "<path d=\"\($series.points | path($series.step // false))\" fill=\"none\" "
              + "stroke=\"\($colour)\" stroke-width=\"2\"/>",
              (if ($series.points | length) <= 40 and ($series.step // false | not) then
                  $series.points[]
                  | "<circle cx=\"\(.[0] | at_x)\" cy=\"\(.[1] | at_y)\" r=\"3\" fill=\"\($colour)\"/>"
              else empty end),
              # Legend: three entries in a line.
              (80 + ($i % 3) * 260) as $x | (50 + ($i / 3 | floor) * 18) as $y
              | "<path d=\"M\($x) \($y)h28\" stroke=\"\($colour)\" stroke-width=\"3\"/>",
                ($series.label | text($x + 36; $y + 5; "start"; 13; ""))),
        "</svg>"
      ] | join("\n");
