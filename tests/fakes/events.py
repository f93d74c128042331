"""Files of event cameras, byte by byte as their makers lay them out."""

import struct


def _table(fields):
    """A flatbuffer of one table: field -> (struct format, value) or bytes (a vector with its count before it)."""
    count = max(fields) + 1
    vtable_size = 4 + 2 * count
    body, places, tails = b"", [0] * count, []
    for number, value in sorted(fields.items()):
        places[number] = 4 + len(body)
        if isinstance(value, bytes):
            tails.append((len(body), value))
            body += b"\0\0\0\0"
        else:
            body += struct.pack(*value)
    start = 4 + vtable_size
    table = bytearray(struct.pack("<i", vtable_size) + body)
    tail = b""
    for place, value in tails:
        at = start + len(table) + len(tail)
        struct.pack_into("<I", table, 4 + place, at - (start + 4 + place))
        tail += value
    vtable = struct.pack(f"<HH{count}H", vtable_size, len(table), *places)
    return struct.pack("<I", start) + vtable + bytes(table) + tail


def event_packet(t, x, y, p):
    """Events as a flatbuffer with its size before it."""
    structs = b"".join(struct.pack("<qhhBxxx", *event) for event in zip(t, x, y, p, strict=True))
    content = _table({0: struct.pack("<I", len(t)) + structs})
    return struct.pack("<I", len(content)) + content


def write_aedat4(path, packets, compression=0, squeeze=lambda content: content):
    """A file of (stream, content) packets, of which stream 1 is of events, 640 x 480 pixels."""
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/0/"><attr key="typeIdentifier" type="string">FRME</attr></node>'
        b'<node name="1" path="/1/"><attr key="compression" type="string">NONE</attr>'
        b'<attr key="typeIdentifier" type="string">EVTS</attr><node name="info" path="/1/info/">'
        b'<attr key="sizeX" type="int">640</attr><attr key="sizeY" type="int">480</attr></node></node></node></dv>'
    )
    header = _table({0: ("<i", compression), 1: ("<q", -1), 2: struct.pack("<I", len(info)) + info})
    content = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    for stream, packet in packets:
        squeezed = squeeze(packet)
        content += struct.pack("<ii", stream, len(squeezed)) + squeezed
    path.write_bytes(content)
    return path
