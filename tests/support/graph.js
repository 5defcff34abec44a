// What the open graph looks like: zoom, nodes and groups as [left, top, right, bottom], and wires as lines of points.
() => {
    const rectangle = ([x, y, width, height]) => [x, y, x + width, y + height];
    const nodes = app.graph.nodes.map(node => {
        const [left, top, right, bottom] = rectangle(node.boundingRect);
        const widgets = node.flags.collapsed ? [] : node.widgets ?? [];  // a run adds notes and previews
        const lowest = widgets.map(widget => node.pos[1] + (widget.y ?? 0) + (widget.computedHeight ?? 0));
        return {
            title: node.title,
            bounds: [left, top, right, Math.max(bottom, ...lowest)],
        };
    });
    const wires = [...app.graph.links.values()].map(link => {
        const [from, to] = [app.graph.getNodeById(link.origin_id), app.graph.getNodeById(link.target_id)];
        const [start, end] = [from.getOutputPos(link.origin_slot), to.getInputPos(link.target_slot)];
        const reach = Math.max(30, 0.25 * Math.hypot(end[0] - start[0], end[1] - start[1]));  // as LiteGraph draws it
        const curve = axis => t => {
            const handle = axis === 0 ? reach : 0;
            const points = [start[axis], start[axis] + handle, end[axis] - handle, end[axis]];
            const weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3];
            return points.reduce((sum, point, index) => sum + point * weights[index], 0);
        };
        const steps = Array.from({length: 41}, (_, index) => index / 40);
        return {
            name: `${from.title} ${link.origin_slot} to ${to.title} ${link.target_slot}`,
            points: steps.map(t => [curve(0)(t), curve(1)(t)]),
        };
    });
    return JSON.stringify({
        zoom: app.canvas.ds.scale,
        unreadable: app.canvas.low_quality,
        nodes,
        groups: app.graph.groups.map(group => ({title: group.title, bounds: rectangle(group.boundingRect)})),
        wires,
    });
}
