# Where the processor time of a packing process goes, from the stacks of `perf`:
#
#   perf record -F 4000 -g -p PID -o perf.data        (until the work is done, then Ctrl-C)
#   perf script -i perf.data -F comm,ip,sym | awk -f bench/profile.awk
#
# Each sample counts once, for the first group that any function of its stack belongs to.

function group(s) {
    if (s ~ /SampleChoice|ZDICT|assemble::train/) return "dictionaries (a part of compression)"
    if (s ~ /ZSTD_|lz4_flex/) return "compression"
    if (s ~ /crc32|crc_u64|sha256|sha2::/) return "checksums"
    if (s ~ /BatchReader|des_worker::source|read_carefully/) return "reading"
    if (s ~ /hyper|tcp_|sock|aws_|rustls/) return "network"
    if (s ~ /ksys_write|pwrite|fsync|iomap_dio/) return "writing"
    if (s ~ /page_fault/) return "page faults elsewhere"
    if (s ~ /segment|varint/) return "the shard's list of files"
    if (s ~ /futex|schedule|park|epoll/) return "waiting and waking"
    return "everything else"
}

function sample() {
    if (stack != "") {
        count[group(stack)]++
        samples++
    }
    stack = ""
}

/^[^ \t]/ || /^[ \t]*$/ { sample(); next }
{ stack = stack " " $0 }

END {
    sample()
    if (!samples) {
        print "no samples: is this the output of perf script -F comm,ip,sym?" > "/dev/stderr"
        exit 1
    }
    for (name in count) printf "%5.1f %%  %s\n", 100 * count[name] / samples, name | "sort -rn"
    close("sort -rn")
    printf "%d samples\n", samples
}
