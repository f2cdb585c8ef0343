return { 'ok', call('ZRANGE', ns .. ':jobs', 0, -1) }
