// Turn the prompt that is open in ComfyUI's frontend into a template: subgraphs, notes, places, groups and colours.
// The argument is the JSON of a layout from authoring/templates.py. A key names a node by id, title or type.
text => {
    const layout = JSON.parse(text);
    const nodeOf = (graph, key) =>
        graph.nodes.find(node => String(node.id) === key) ??
        graph.nodes.find(node => node.title === key) ??
        graph.nodes.find(node => node.type === key);
    const find = key => nodeOf(app.graph, key) ?? (() => { throw new Error(`no node ${key}`) })();
    const slotOf = (node, name) => node.inputs.findIndex(input => input.name === name);
    const widgetOf = (node, name) => node.widgets.find(widget => widget.name === name);
    const origin = (node, name) => {
        const link = app.graph.links.get(node.inputs[slotOf(node, name)]?.link);
        return link && [app.graph.getNodeById(link.origin_id), link.origin_slot];
    };

    function describe(node) {
        node.properties.models = layout.models[node.id] ?? layout.models[node.type];
        const control = node.widgets?.find(widget => widget.name === 'control_after_generate');
        if (control) control.value = 'randomize';
    }

    // Feed a text from a node of its own.
    function feed([key, name, title]) {
        const source = LiteGraph.createNode('PrimitiveStringMultiline');
        app.graph.add(source);
        source.title = title;
        source.widgets[0].value = widgetOf(find(key), name).value;
        source.connect(0, find(key), slotOf(find(key), name));
    }

    // Return a node inside a subgraph that hands on one of its inputs.
    function passing(subgraph, name) {
        const input = subgraph.inputs.find(input => input.name === name);
        const reroute = LiteGraph.createNode('Reroute');
        subgraph.add(reroute);
        input.connect(reroute.inputs[0], reroute);
        reroute.outputs[0].type = input.type;
        reroute.pos = [0, -60 - 60 * subgraph.nodes.filter(node => node.type === 'Reroute').length];
        return reroute;
    }

    // Put nodes into a subgraph. An output without a node hands on the input of its name, to all that take the same.
    // `copies` name nodes that a further node of the same subgraph replaces.
    function putInBox(box) {
        const members = box.members.map(find);
        const replaced = box.copies.map(keys => keys.map(find));
        const inputs = box.inputs.map(([name, key, input]) => [name, key, input, origin(find(key), input)]);
        const outputs = box.outputs.map(([name, key, slot]) => {
            const [source, output] = key ? [find(key), slot] : inputs.find(input => input[0] === name)[3];
            const links = source.outputs[output].links?.map(id => app.graph.links.get(id)) ?? [];
            const targets = links.map(link => [app.graph.getNodeById(link.target_id), link.target_slot]);
            return [name, key, slot, targets.filter(([node]) => !members.includes(node))];
        });
        const {subgraph, node} = app.graph.convertToSubgraph(new Set(members));
        node.title = subgraph.name = box.title;
        [...subgraph.inputs].forEach(input => subgraph.removeInput(input));
        [...subgraph.outputs].forEach(output => subgraph.removeOutput(output));
        for (const [name, key, input, source] of inputs) {
            const inner = nodeOf(subgraph, key);
            const slot = inner.inputs[slotOf(inner, input)];
            const given = subgraph.inputs.find(input => input.name === name) ?? subgraph.addInput(name, slot.type);
            given.connect(slot, inner);
            source?.[0].connect(source[1], node, slotOf(node, name));
        }
        for (const [key, name, label] of box.shown) {
            const inner = nodeOf(subgraph, key);
            const slot = inner.inputs[slotOf(inner, name)];
            subgraph.addInput(label, slot.type).connect(slot, inner);
        }
        for (const [index, [name, key, slot, targets]] of outputs.entries()) {
            const inner = key ? nodeOf(subgraph, key) : passing(subgraph, name);
            subgraph.addOutput(name, inner.outputs[slot].type).connect(inner.outputs[slot], inner);
            targets.forEach(([target, input]) => node.connect(index, target, input));
        }
        arrange(subgraph, box);
        replaced.forEach((nodes, index) => replace(nodes, node, subgraph, `${box.title} ${index + 2}`));
    }

    // Put a further node of a subgraph in the place of nodes like those inside it.
    function replace(nodes, original, subgraph, title) {
        const counterpart = inner => nodes.find(node => node.type === inner.type);
        const copy = LiteGraph.createNode(subgraph.id);
        app.graph.add(copy);
        copy.title = title;
        subgraph.inputs.forEach((input, slot) => {
            const link = subgraph.links.get(input.linkIds[0]);
            const inner = subgraph.getNodeById(link.target_id);
            const name = inner.inputs[link.target_slot].name;
            const other = counterpart(inner);
            if (original.inputs[slot].widget) {
                if (other) copy.widgets.find(widget => widget.name === input.name).value = widgetOf(other, name).value;
            } else {
                const [source, output] = other ? origin(other, name) : origin(original, input.name);
                source.connect(output, copy, slot);
            }
        });
        subgraph.outputs.forEach((output, slot) => {
            const link = subgraph.links.get(output.linkIds[0]);
            const other = counterpart(subgraph.getNodeById(link.origin_id));
            for (const id of [...(other?.outputs[link.origin_slot].links ?? [])]) {
                const {target_id, target_slot} = app.graph.links.get(id);
                copy.connect(slot, app.graph.getNodeById(target_id), target_slot);
            }
        });
        nodes.forEach(node => app.graph.remove(node));
    }

    function note([title, content]) {
        const node = LiteGraph.createNode('MarkdownNote');
        app.graph.add(node);
        node.title = title;
        node.widgets[0].value = content;
        node.color = '#222';
        node.bgcolor = '#000';
    }

    function arrange(graph, {places, groups = {}}) {
        for (const [key, [left, top, width, height]] of Object.entries(places)) {
            const node = nodeOf(graph, key);
            if (!node) continue;
            node.pos = [left, top];
            node.setSize([width, height]);
            if (height === 0) node.flags.collapsed = true;
            const colour = layout.colours[key];
            if (colour) Object.assign(node, LGraphCanvas.node_colors[colour]);
        }
        for (const [title, [left, top, right, bottom]] of Object.entries(groups)) {
            const group = new LiteGraph.LGraphGroup(title);
            group.pos = [left, top];
            group.size = [right - left, bottom - top];
            graph.add(group);
        }
        graph.inputNode?.arrange();
        graph.outputNode?.arrange();
    }

    app.graph.nodes.forEach(describe);
    layout.feeds.forEach(feed);
    layout.boxes.forEach(putInBox);
    Object.entries(layout.notes).forEach(note);
    arrange(app.graph, layout);
    for (const copy of layout.boxes.flatMap(box => box.copies.map((_, index) => [box.title, index + 2]))) {
        find(copy.join(' ')).title = copy[0];
    }
}
