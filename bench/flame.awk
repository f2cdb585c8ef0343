# A flame graph (Brendan Gregg, "The Flame Graph", CACM 59(6), 2016) of what `perf` saw, as an SVG without scripts:
#
#   perf record -F 4000 -g -p PID -o perf.data        (until the work is done, then Ctrl-C)
#   perf script -i perf.data -F comm,ip,sym | awk -f bench/flame.awk -v title="des pack" > flame.svg
#
# Callers are below, the width is the share of the samples, a title tells name and share. Frames of the runtime and of
# Rust's library are left out: they stand between all others and say nothing about the work.

function shorten(name) {
    sub(/^[ \t]*[0-9a-f]+[ \t]+/, "", name)
    sub(/ \(inlined\)$/, "", name)
    while (gsub(/<[^<>]*>/, "", name)) {}
    gsub(/\{\{closure\}\}/, "{}", name)
    gsub(/::::/, "::", name)
    return name
}

function is_plumbing(name) {
    return name ~ /^(core|std|alloc|tokio|tokio_util|futures)[:_]|^(\[unknown\]|clone3|start_thread|_start|entry_SYSCALL|do_syscall|asm_|x64_sys|__x64_sys)|__rust|^::|^$|^_?raw_|^[0-9a-fx]+$/
}

function sample(   i, name, path, parent) {
    if (depth == 0) return
    samples++
    path = "all"
    count[path]++
    for (i = depth; i > 0; i--) {
        name = shorten(frames[i])
        if (is_plumbing(name)) continue
        parent = path
        path = path ";" name
        if (!(path in count)) {
            children[parent]++
            child[parent, children[parent]] = path
            label[path] = name
        }
        count[path]++
    }
    depth = 0
}

function colour(name) {
    if (name ~ /crc|sha2|md5/) return "#b04fa8"
    if (name ~ /^(ZSTD|HUF|FSE|HIST|ZDICT|BIT|MEM|COVER|FASTCOVER)_|^zstd|encode_unless|compress/) return "#e8853d"
    if (name ~ /^(des|<des)/) return "#e6c04c"
    if (name ~ /^[a-z_0-9.]+$/) return "#7aa6c2"
    return "#bdb49c"
}

function escape(text) {
    gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text)
    return text
}

function box(path, x, level,   width, name, i, y, room) {
    width = count[path] / samples * 1180
    if (width < 3) return
    if (level > deepest) deepest = level
    name = path == "all" ? title : label[path]
    y = -level * 16
    room = int(width / 6.2)
    shape[++shapes] = sprintf("<g><title>%s: %.1f %%</title><rect x='%.1f' y='%d' width='%.1f' height='15' fill='%s'/>%s</g>", \
        escape(name), 100 * count[path] / samples, x, y, width - 0.3, path == "all" ? "#d8d8d8" : colour(name), \
        room < 4 ? "" : sprintf("<text x='%.1f' y='%d'>%s</text>", x + 2, y + 11, escape(substr(name, 1, room))))
    for (i = 1; i <= children[path]; i++) {
        box(child[path, i], x, level + 1)
        x += count[child[path, i]] / samples * 1180
    }
}

/^[^ \t]/ || /^[ \t]*$/ { sample(); next }
{ frames[++depth] = $0 }

END {
    sample()
    if (!samples) {
        print "no samples: is this the output of perf script -F comm,ip,sym?" > "/dev/stderr"
        exit 1
    }
    box("all", 10, 0)
    top = -deepest * 16 - 4
    printf "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 %d 1200 %d' font-family='monospace' font-size='10'>\n", top, 24 - top
    printf "<rect x='0' y='%d' width='1200' height='%d' fill='white'/>\n", top, 24 - top
    for (i = 1; i <= shapes; i++) print shape[i]
    print "</svg>"
}
